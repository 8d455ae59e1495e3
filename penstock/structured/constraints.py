"""Constraints of requests, as the core follows them: opened, filled into masks beside the forward pass, advanced by
tokens.

Implements ``core.ports.Constraints``. Masks are filled on threads of its own, because the core's thread computes, on a
CPU, or plans the next step.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import SimpleQueue

from penstock.structured.contract import ConstraintError, GrammarSession, StructuredBackend, Vocabulary
from penstock.structured.grammar_cache import CompileLimits, GrammarCache, Pending
from penstock.types.request import SamplingParams
from penstock.types.structured import ConstraintStats

log = logging.getLogger(__name__)

ROWS_PER_THREAD = 16
"""A mask takes 20 to 100 us; handing it to another thread takes as long."""

FOLLOW_S = 1.0
FOLLOW_TOKEN_S = 0.005
"""Seconds of processor time that one answer may take to follow, and how many more per token: many times what schemas of
use take. Everyone in a step waits for the slowest of its masks."""


class RequestConstraint:
    """One request's place in its grammar. All but ``fill`` is called by the core's thread; ``fill`` never beside it."""

    __slots__ = ("_cache", "_ends", "_left_s", "_pending", "_problem", "_session")

    def __init__(self, cache: GrammarCache, pending: Pending, *, may_end: bool) -> None:
        self._cache = cache
        self._pending = pending
        self._session: GrammarSession | None = None
        self._ends = may_end
        self._problem = ""
        self._left_s = FOLLOW_S

    @property
    def done(self) -> bool:
        """The grammar has been compiled, or refused."""
        return self._pending.done

    @property
    def problem(self) -> str:
        """Why the request cannot go on; an empty string when it can."""
        return self._problem or self._pending.problem

    @property
    def is_terminated(self) -> bool:
        """Nothing but an end token may follow."""
        return self._session is not None and not self.problem and self._session.is_terminated

    def open(self) -> None:
        """Begin at the first token. Called once, when ``done`` without a problem."""
        assert self._pending.grammar is not None
        self._session = self._pending.grammar.open()

    def drop(self) -> None:
        """The request has ended before ``done``."""
        self._cache.drop(self._pending)

    def give_up(self, problem: str) -> None:
        self._problem = self._problem or problem

    def accept(self, token_ids: Sequence[int]) -> None:
        """Go on by tokens that were sampled under this constraint's masks."""
        assert self._session is not None
        began = time.thread_time()
        try:
            for token_id in token_ids:
                if not self._session.accept(token_id):
                    self._problem = "The answer has left the form that was asked for; this is a defect of the engine."
                    return
        except ConstraintError as error:
            self._problem = str(error)
        self._charge(began, len(token_ids))

    def fill(self, drafts: Sequence[int]) -> list[bytes]:
        """Masks of the next token and of those behind each draft. Drafts that are not allowed end the list with masks
        that nothing will be asked of."""
        vocabulary = self._cache.vocabulary()
        nothing = bytes(vocabulary.mask_bytes)
        masks: list[bytes] = []
        accepted = 0
        began = time.thread_time()
        assert self._session is not None
        try:
            masks.append(self._fill_one(vocabulary))
            for draft in drafts:
                if not self._session.accept(draft):
                    break
                accepted += 1
                masks.append(self._fill_one(vocabulary))
            self._session.rollback(accepted)
        except ConstraintError as error:
            self._problem = str(error)
        self._charge(began, len(masks))
        return masks + [nothing] * (len(drafts) + 1 - len(masks))

    def _charge(self, began: float, num_tokens: int) -> None:
        self._left_s += num_tokens * FOLLOW_TOKEN_S - (time.thread_time() - began)
        if self._left_s < 0:
            self.give_up(
                "The answer takes too long to follow in the form that was asked for. Make that simpler: a grammar with "
                "fewer ways to read the same text."
            )

    def _fill_one(self, vocabulary: Vocabulary) -> bytes:
        assert self._session is not None
        mask = self._session.fill()
        if self._ends:
            return mask
        without = bytearray(mask)
        for token_id in vocabulary.end_ids:
            without[token_id // 8] &= ~(1 << token_id % 8)
        return bytes(without)


class FilledMasks:
    """Masks that are being filled. ``wait`` answers them, flat, in the order of the rows and their drafts."""

    def __init__(self, num_rows: int) -> None:
        self._masks: list[list[bytes]] = [[] for _ in range(num_rows)]
        self._missing = num_rows
        self._lock = threading.Lock()
        self._there = threading.Event()

    def put(self, row: int, masks: list[bytes]) -> None:
        self._masks[row] = masks
        with self._lock:
            self._missing -= 1
            if not self._missing:
                self._there.set()

    def wait(self) -> list[bytes]:
        self._there.wait()
        return [mask for masks in self._masks for mask in masks]


_Job = tuple[FilledMasks, Sequence[tuple[int, RequestConstraint | None, Sequence[int]]]]


class Constraints:
    """``vocabulary`` is made when the first constrained request comes."""

    def __init__(
        self,
        backend: StructuredBackend,
        vocabulary: Callable[[], Vocabulary],
        *,
        num_threads: int = 1,
        limits: CompileLimits | None = None,
    ) -> None:
        self._cache = GrammarCache(backend, vocabulary, limits)
        self._num_threads = num_threads
        self._threads: list[threading.Thread] = []
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._fill_s = 0.0
        self._num_masks = 0

    def constrain(self, sampling: SamplingParams) -> RequestConstraint:
        """Begin to compile what ``sampling.structured`` says, unless it is there."""
        assert sampling.structured is not None
        return RequestConstraint(self._cache, self._cache.find(sampling.structured), may_end=not sampling.ignore_eos)

    def fill(self, rows: Sequence[tuple[RequestConstraint | None, Sequence[int]]]) -> Callable[[], Sequence[bytes]]:
        """Fill the masks of rows, each a constraint and its drafts, beside the caller; answers a call that waits for
        them.

        A row without a constraint is one whose answer nobody wants any more: everything is allowed.
        """
        filled = FilledMasks(len(rows))
        numbered = [(index, constraint, drafts) for index, (constraint, drafts) in enumerate(rows)]
        num_jobs = min(self._num_threads, -(-len(rows) // ROWS_PER_THREAD))
        while len(self._threads) < num_jobs:
            thread = threading.Thread(target=self._work, name=f"penstock-masks-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        for part in range(num_jobs):
            self._jobs.put((filled, numbered[part::num_jobs]))
        return filled.wait

    def stats(self) -> ConstraintStats:
        """Counters since the start; seconds are added up over all threads."""
        return replace(self._cache.stats(), num_masks=self._num_masks, masks_s=self._fill_s)

    def close(self) -> None:
        """Idempotent."""
        self._cache.close()
        for _ in self._threads:
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            filled, rows = job
            began, num_masks = time.perf_counter(), 0
            for index, constraint, drafts in rows:
                masks = self._fill_row(constraint, drafts)
                num_masks += len(masks) if constraint is not None else 0
                filled.put(index, masks)
            with self._lock:
                self._fill_s += time.perf_counter() - began
                self._num_masks += num_masks

    def _fill_row(self, constraint: RequestConstraint | None, drafts: Sequence[int]) -> list[bytes]:
        width = self._cache.vocabulary().mask_bytes
        if constraint is None:
            return [b"\xff" * width] * (len(drafts) + 1)
        try:
            return constraint.fill(drafts)
        except Exception:  # a row without masks would hold up its step for good
            log.exception("masks were not filled")
            constraint.give_up("The masks of the answer could not be filled; this is a defect of the engine.")
            return [bytes(width)] * (len(drafts) + 1)
