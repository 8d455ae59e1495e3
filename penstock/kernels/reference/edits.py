"""Reference of the ops that change logits by what requests ask, over state that stays on the device. Knows no request:
a seat is a number here.

``rules`` int64 [seats, 4] has one line per seat: its place in the two tables that follow, or -1 where logits stay as
they are; how many tokens it has to produce before a stop token is allowed; whether its line of ``shifts`` is to be
read; whether its penalties are.

``words`` int32 [places, vocab]: how often a seat has produced each token, with ``IN_PROMPT`` set where its prompt has
the token, and ``STOPS`` where it is a stop token. ``shifts`` float32 [places, vocab]: what is added to the logits,
minus infinity where a token is forbidden. ``penalties`` float32 [seats, 3]: repetition, presence, frequency.
"""

from __future__ import annotations

import torch

from penstock.kernels.reference import sampling

IN_PROMPT = -(1 << 31)
STOPS = 1 << 30
COUNT = STOPS - 1  # bits


def edit_logits(
    logits: torch.Tensor,
    finite: torch.Tensor,
    seats: torch.Tensor,
    rules: torch.Tensor,
    penalties: torch.Tensor,
    words: torch.Tensor,
    shifts: torch.Tensor,
) -> None:
    """Change ``logits`` float32 [n, vocab] of seats int64 [n] in place: forbid, shift, then penalise. ``finite`` bool
    [n] is set to whether all logits of the row were finite; what becomes of others is not said, but for seats
    without a place, whose logits stay."""
    for i, seat in enumerate(seats.tolist()):
        row = logits[i].tolist()
        finite[i] = bool(torch.isfinite(logits[i]).all())
        place, held, shifted, penalised = rules[seat].tolist()
        if place < 0:
            continue
        seen = words[place].tolist()
        stops = [t for t, word in enumerate(seen) if word & STOPS]
        row = sampling.min_tokens(row, stops, 0, held)
        if shifted:
            row = [value + shift for value, shift in zip(row, shifts[place].tolist(), strict=True)]
        if penalised:
            repetition, presence, frequency = penalties[seat].tolist()
            prompt = [t for t, word in enumerate(seen) if word < 0]
            output = [t for t, word in enumerate(seen) for _ in range(word & COUNT)]
            row = sampling.penalties(row, prompt, output, repetition=repetition, presence=presence, frequency=frequency)
        logits[i] = torch.tensor(row, dtype=torch.float64)


def mask_logits(logits: torch.Tensor, rows: torch.Tensor, masks: torch.Tensor) -> None:
    """Minus infinity in place where a mask forbids a token: row ``rows[i]`` of ``logits`` float32 [n, vocab] allows
    token t when bit t % 32 of ``masks[i, t // 32]`` is set.

    rows int64 [m], each named once; masks int32 [m, words] of at least vocab bits, of which those behind the vocabulary
    mean nothing. Rows that are not named stay, and so does what is allowed, finite or not.
    """
    for row, words in zip(rows.tolist(), masks.tolist(), strict=True):
        for token in range(logits.shape[1]):
            if not words[token // 32] >> token % 32 & 1:
                logits[row, token] = float("-inf")


def count_tokens(words: torch.Tensor, rules: torch.Tensor, seats: torch.Tensor, token_ids: torch.Tensor) -> None:
    """Every seat that has a place has produced its token, both int64 [n]; -1 stands for no token. A seat with a place
    is named once."""
    for seat, token in zip(seats.tolist(), token_ids.tolist(), strict=True):
        place = int(rules[seat, 0])
        if place >= 0 and token >= 0:
            words[place, token] += 1
            rules[seat, 1] = max(0, int(rules[seat, 1]) - 1)
