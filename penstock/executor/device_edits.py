"""What requests change in their logits, kept on the device by seat, so that steps in flight need nothing of the host.

Knows no model. A request that forbids, shifts or penalises tokens fills its seat's place at admission: how often it has
seen each token and what is added to each logit. There are as many places as seats: requests that need one are the rule
where a checkpoint's own defaults penalise. The step itself counts what it samples. What the host sampled in between is
counted when the seat samples on the device again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from penstock.executor.device_masks import allowed_by
from penstock.executor.sampler.masks import NEVER, BadSequences, Bias
from penstock.executor.sampler.rows import SeatSampling
from penstock.executor.sampler.sampler import EMPTY_MASK, MASKS, NO_TOKEN_LEFT, OVERFLOW, SHIFTS, STEPS
from penstock.executor.seats import Ints, SeatState
from penstock.kernels.reference.edits import IN_PROMPT, STOPS
from penstock.types.plan import Admission
from penstock.types.result import RowFailure

WORD_BYTES = 4 + 4  # of a place and token: its word and its shift
NOTHING = (-1, 0, 0, 0)


def edit_bytes(max_num_seqs: int, vocab_size: int) -> int:
    """What the tables take on the device, from the first request that needs them on."""
    return max_num_seqs * vocab_size * WORD_BYTES


@dataclass(frozen=True, slots=True)
class EditOps:
    """The ops of these names."""

    edit_logits: Callable[..., None]
    count_tokens: Callable[..., None]


@dataclass(frozen=True, slots=True)
class _Tables:
    """See ``kernels.reference.edits``. A seat's place has its number. The last line of ``rules`` is of rows that only
    fill a shape."""

    rules: torch.Tensor
    penalties: torch.Tensor
    words: torch.Tensor
    shifts: torch.Tensor


@dataclass(slots=True)
class _Resident:
    """``num_counted`` of the request's tokens are, or will be by what was launched, counted on the device."""

    sampling: SeatSampling
    num_counted: int


class DeviceEdits:
    """Owns the tables; allocates them when a first request needs a place. Everything is sent in the order of steps."""

    def __init__(self, max_num_seqs: int, vocab_size: int, ops: EditOps, device: torch.device) -> None:
        self._max_num_seqs, self._vocab_size = max_num_seqs, vocab_size
        self._ops, self._device = ops, device
        self._residents: dict[int, _Resident] = {}
        self._made: _Tables | None = None

    def admit(self, admission: Admission, sampling: SeatSampling) -> bool:
        """Fill the place of the request's seat; False when what it asks needs the host. What the seat had is given up
        before, by ``release``."""
        if not can_edit(sampling):
            return False
        known = len(admission.token_ids)
        self._residents[admission.seat] = _Resident(sampling, known)
        tables, params = self._tables(), sampling.params
        words = _words(admission, sampling, self._vocab_size)
        self._send(tables.words[admission.seat], torch.from_numpy(words))
        shifts = _shifts(sampling, self._vocab_size)
        if shifts is not None:
            self._send(tables.shifts[admission.seat], shifts)
        penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
        self._send(tables.penalties[admission.seat], torch.tensor(penalties))
        self._send_rules(admission.seat, known)
        return True

    def release(self, seat: int) -> None:
        """The seat's request has gone."""
        if self._residents.pop(seat, None) is not None:
            self._send(self._tables().rules[seat], torch.tensor(NOTHING))

    def concern(self, seats: Ints) -> bool:
        """The place of one of the seats is in use."""
        return bool(self._residents) and not self._residents.keys().isdisjoint(seats.tolist())

    def expect(self, seats: Ints, state: SeatState) -> None:
        """A step is about to be launched that samples one token of each seat on the device."""
        for seat in self._residents.keys() & set(seats.tolist()):
            known = int(state.num_known[seat])
            if self._residents[seat].num_counted < known:
                self._catch_up(seat, state.tokens[seat, :known])
            self._residents[seat].num_counted = known + 1

    def take_back(self, seats: Ints) -> None:
        """The last step that was expected to sample of each seat has brought no token."""
        for seat in self._residents.keys() & set(seats.tolist()):
            self._residents[seat].num_counted -= 1

    def edit(self, logits: torch.Tensor, seats: torch.Tensor) -> torch.Tensor:
        """Change logits float32 [n, vocab] of seats [n] in place; answers which rows were finite, bool [n]."""
        tables = self._tables()
        finite = torch.empty(logits.shape[0], dtype=torch.bool, device=logits.device)
        self._ops.edit_logits(logits, finite, seats, tables.rules, tables.penalties, tables.words, tables.shifts)
        return finite

    def count(self, seats: torch.Tensor, token_ids: torch.Tensor) -> None:
        """The seats [n] have produced these tokens; -1 is none."""
        tables = self._tables()
        self._ops.count_tokens(tables.words, tables.rules, seats, token_ids)

    def _tables(self) -> _Tables:
        if self._made is None:
            lines, shape = self._max_num_seqs + 1, (self._max_num_seqs, self._vocab_size)
            self._made = _Tables(
                rules=torch.tensor(NOTHING).repeat(lines, 1).to(self._device),
                penalties=torch.zeros(lines, 3, device=self._device),
                words=torch.zeros(shape, dtype=torch.int32, device=self._device),
                shifts=torch.zeros(shape, dtype=torch.float32, device=self._device),
            )
        return self._made

    def _catch_up(self, seat: int, tokens: npt.NDArray[np.int32]) -> None:
        """Count the tokens that the host sampled."""
        resident = self._residents[seat]
        ids, counts = np.unique(tokens[resident.num_counted :], return_counts=True)
        where = self._sent(torch.from_numpy(ids.astype(np.int64)))
        added = self._sent(torch.from_numpy(counts.astype(np.int32)))
        self._tables().words[seat].index_add_(0, where, added)
        self._send_rules(seat, len(tokens))

    def _send_rules(self, seat: int, known: int) -> None:
        resident = self._residents[seat]
        prepared, params = _prepared(resident.sampling), resident.sampling.params
        left = params.min_tokens - (known - resident.sampling.num_prompt_tokens)
        held = max(0, left) if prepared["min_tokens"] is not None else 0
        shifted = any(prepared[name] is not None for name in ("allowed_tokens", "bad_tokens", "logit_bias"))
        rules = (seat, held, int(shifted), int(prepared["penalties"] is not None))
        self._send(self._tables().rules[seat], torch.tensor(rules))

    def _send(self, target: torch.Tensor, values: torch.Tensor) -> None:
        target.copy_(self._pinned(values), non_blocking=True)

    def _sent(self, values: torch.Tensor) -> torch.Tensor:
        return self._pinned(values).to(self._device, non_blocking=True)

    def _pinned(self, values: torch.Tensor) -> torch.Tensor:
        """In memory that is copied from behind what was launched; torch keeps it until it has been."""
        return values.pin_memory() if self._device.type == "cuda" else values


def needs_edit(sampling: SeatSampling) -> bool:
    """The request's steps before the cuts do something."""
    prepared = _prepared(sampling)
    return any(prepared[step.name] is not None for step in (*MASKS, *SHIFTS))


def can_edit(sampling: SeatSampling) -> bool:
    """The ops can do all that the request's steps before the cuts do."""
    bad: BadSequences | None = _prepared(sampling)["bad_tokens"]
    return bad is None or not bad.longer


def refusal(sampling: SeatSampling, num_output: int, vocab_size: int, mask: bytes | None = None) -> RowFailure:
    """Why no token could be drawn behind finite logits: nothing is allowed, or shifts and penalties overflow. In the
    words of the host's sampler: a mask alone is to blame where the request forbids nothing itself."""
    forbidden = _forbidden(sampling, vocab_size)
    stops = _prepared(sampling)["min_tokens"]
    if stops is not None and num_output < sampling.params.min_tokens:
        forbidden[stops] = True
    if mask is not None:
        forbidden |= ~allowed_by(mask, vocab_size)
    if not bool(forbidden.all()):
        return OVERFLOW
    prepared = _prepared(sampling)
    return NO_TOKEN_LEFT if any(prepared[step.name] is not None for step in MASKS) else EMPTY_MASK


def _prepared(sampling: SeatSampling) -> dict[str, Any]:
    """By the names of the sampler's steps."""
    return {step.name: own for step, own in zip(STEPS, sampling.prepared, strict=True)}


def _forbidden(sampling: SeatSampling, vocab_size: int) -> torch.Tensor:
    """Tokens that are never allowed, bool [vocab]."""
    prepared = _prepared(sampling)
    allowed, bad = prepared["allowed_tokens"], prepared["bad_tokens"]
    forbidden = torch.full((vocab_size,), allowed is not None)
    if isinstance(allowed, torch.Tensor):
        forbidden[allowed] = False
    if isinstance(bad, BadSequences):
        forbidden[bad.single] = True
    return forbidden


def _shifts(sampling: SeatSampling, vocab_size: int) -> torch.Tensor | None:
    """What is added to the logits, float32 [vocab]; None when nothing is."""
    prepared = _prepared(sampling)
    if all(prepared[name] is None for name in ("allowed_tokens", "bad_tokens", "logit_bias")):
        return None
    shifts = torch.zeros(vocab_size)
    bias = prepared["logit_bias"]
    if isinstance(bias, Bias):
        shifts[bias.token_ids] = bias.values
    return shifts.masked_fill_(_forbidden(sampling, vocab_size), NEVER)


def _words(admission: Admission, sampling: SeatSampling, vocab_size: int) -> npt.NDArray[np.int32]:
    tokens = np.array(admission.token_ids, dtype=np.int64)
    prompt, output = tokens[: admission.num_prompt_tokens], tokens[admission.num_prompt_tokens :]
    words = np.bincount(output, minlength=vocab_size).astype(np.int32)
    stops = _prepared(sampling)["min_tokens"]
    if isinstance(stops, torch.Tensor):
        words[stops.numpy()] |= STOPS
    words[prompt] |= IN_PROMPT
    return words
