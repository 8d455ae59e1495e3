"""Responses that later requests may go on from: in memory, bounded in number and bytes, the least recently used go.

A stored response knows the one before it, so that a conversation is a chain and every item is stored once. Whoever
uses a response uses all before it: none of them goes before it does.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """``body`` is the response as JSON, ``input`` the JSON list of the items of its request alone. ``owner`` stands for
    the key of whoever asked for it."""

    id: str
    body: bytes
    input: bytes
    previous_id: str | None = None
    owner: bytes = b""

    @property
    def nbytes(self) -> int:
        return len(self.body) + len(self.input)


class BrokenChainError(LookupError):
    """A response that is not stored (any more). ``missing_id`` is the first one that is missed."""

    def __init__(self, missing_id: str) -> None:
        super().__init__(missing_id)
        self.missing_id = missing_id


class ResponseStore:
    """Used from one event loop. ``max_bytes`` is over the JSON of responses and of their input.

    What another owner has stored is not there: nobody learns from an answer that it is.
    """

    def __init__(self, max_responses: int, max_bytes: int) -> None:
        self.max_responses = max_responses
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stored)

    def get(self, response_id: str, owner: bytes = b"") -> StoredResponse | None:
        stored = self._stored.get(response_id)
        return stored if stored is not None and stored.owner == owner else None

    def add(self, response: StoredResponse) -> None:
        """May be gone at once when it alone, with those before it, is larger than the store."""
        self._stored[response.id] = response
        self.num_bytes += response.nbytes
        for earlier in reversed(self._known_chain(response.previous_id, response.owner)):
            self._stored.move_to_end(earlier.id)
        while len(self._stored) > self.max_responses or self.num_bytes > self.max_bytes:
            self._forget(next(iter(self._stored)))

    def chain(self, response_id: str, owner: bytes = b"") -> list[StoredResponse]:
        """The response and all before it, the first one first. Raises BrokenChainError."""
        chain = self._known_chain(response_id, owner)
        if not chain or chain[0].previous_id is not None:
            raise BrokenChainError(response_id if not chain else chain[0].previous_id or response_id)
        for response in reversed(chain):
            self._stored.move_to_end(response.id)
        return chain

    def delete(self, response_id: str, owner: bytes = b"") -> bool:
        """Whether it was there. Conversations that go through it cannot be gone on with."""
        if self.get(response_id, owner) is None:
            return False
        self._forget(response_id)
        return True

    def _known_chain(self, response_id: str | None, owner: bytes) -> list[StoredResponse]:
        chain: list[StoredResponse] = []
        while response_id is not None and (response := self.get(response_id, owner)) is not None:
            chain.append(response)
            response_id = response.previous_id
        chain.reverse()
        return chain

    def _forget(self, response_id: str) -> None:
        self.num_bytes -= self._stored.pop(response_id).nbytes
