"""What each sampler step means, for one row, in plain Python floats: the truth that the batched steps are held to.

A row is a list of logits, one per token id; a forbidden token has minus infinity. Every function returns a new row.
``sample`` alone takes a batch. Knows no request.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

Row = list[float]
NEVER = float("-inf")


def softmax(row: Sequence[float]) -> Row:
    best = max(row)
    weights = [math.exp(value - best) for value in row]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def log_softmax(row: Sequence[float]) -> Row:
    best = max(row)
    norm = best + math.log(math.fsum(math.exp(value - best) for value in row))
    return [value - norm for value in row]


def bitmask(row: Sequence[float], mask: bytes) -> Row:
    """Token t is allowed when bit t % 32 of the little-endian 32-bit word t // 32 is set."""
    words = [int.from_bytes(mask[i : i + 4], "little") for i in range(0, len(mask), 4)]
    return [value if t // 32 < len(words) and words[t // 32] >> (t % 32) & 1 else NEVER for t, value in enumerate(row)]


def allowed_tokens(row: Sequence[float], allowed: Sequence[int]) -> Row:
    return [value if t in set(allowed) else NEVER for t, value in enumerate(row)]


def bad_tokens(row: Sequence[float], sequences: Sequence[Sequence[int]], history: Sequence[int]) -> Row:
    """Forbid the last token of each sequence whose first ones end the history."""
    banned = {
        s[-1]
        for s in sequences
        if len(history) >= len(s) - 1 and list(history[len(history) - len(s) + 1 :]) == list(s[:-1])
    }
    return [NEVER if t in banned else value for t, value in enumerate(row)]


def min_tokens(row: Sequence[float], stop_ids: Sequence[int], num_output: int, least: int) -> Row:
    return [NEVER if num_output < least and t in set(stop_ids) else value for t, value in enumerate(row)]


def logit_bias(row: Sequence[float], bias: Mapping[int, float]) -> Row:
    return [value + bias.get(t, 0.0) for t, value in enumerate(row)]


def penalties(
    row: Sequence[float],
    prompt: Sequence[int],
    output: Sequence[int],
    *,
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
) -> Row:
    """Repetition (CTRL, arXiv 1909.05858) over prompt and output, then frequency and presence over the output."""
    seen, produced = set(prompt) | set(output), Counter(output)
    answer = list(row)
    for t in seen:
        value = answer[t] / repetition if answer[t] > 0 else answer[t] * repetition
        answer[t] = value - frequency * produced[t] - presence * (produced[t] > 0)
    return answer


def temperature(row: Sequence[float], value: float) -> Row:
    return [logit / value for logit in row]


def min_p(row: Sequence[float], least: float) -> Row:
    probs = softmax(row)
    threshold = least * max(probs)
    return [value if p >= threshold else NEVER for value, p in zip(row, probs, strict=True)]


def top_k(row: Sequence[float], k: int) -> Row:
    threshold = sorted(row, reverse=True)[min(k, len(row)) - 1]
    return [value if value >= threshold else NEVER for value in row]


def top_p(row: Sequence[float], mass: float) -> Row:
    """Keep the fewest likeliest tokens that reach the mass, and those that tie with the last of them."""
    probs = softmax(row)
    threshold, total = 0.0, 0.0
    for p in sorted(probs, reverse=True):
        threshold, total = p, total + p
        if total >= mass:
            break
    return [value if p >= threshold else NEVER for value, p in zip(row, probs, strict=True)]


def typical_p(row: Sequence[float], mass: float) -> Row:
    """Keep the tokens whose surprise is nearest to the entropy until they reach the mass (arXiv 2202.00666)."""
    logprobs = log_softmax(row)
    entropy = -math.fsum(math.exp(lp) * lp for lp in logprobs if lp > NEVER)
    distance = [abs(-lp - entropy) for lp in logprobs]
    threshold, total = 0.0, 0.0
    for t in sorted(range(len(row)), key=distance.__getitem__):
        threshold, total = distance[t], total + math.exp(logprobs[t])
        if total >= mass:
            break
    return [value if d <= threshold else NEVER for value, d in zip(row, distance, strict=True)]


def draw(row: Sequence[float], uniform: float) -> int:
    """The first token, in order of ids, whose cumulated probability exceeds the uniform number."""
    total = 0.0
    probs = softmax(row)
    for t, p in enumerate(probs):
        total += p
        if total > uniform:
            return t
    return max(t for t, p in enumerate(probs) if p > 0)


def cut(row: Sequence[float], *, heat: float, least: float, k: int, mass: float) -> Row:
    """What of a row can be drawn: temperature, min_p, top_k and top_p in this order."""
    if heat != 1.0:
        best = max(row)
        row = temperature([value - best for value in row], heat)
    if least > 0.0:
        row = min_p(row, least)
    if k < len(row):
        row = top_k(row, k)
    return top_p(row, mass) if mass < 1.0 else list(row)


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    min_p: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    uniforms: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of each row: the cuts, then the draw. logits float32 [rows, vocab], minus infinity forbids a token;
    temperature > 0, min_p (0: no cut) float32 [rows]; top_k (the vocabulary's size or more: no cut) int64 [rows];
    top_p (1: no cut), uniforms in [0, 1) float64 [rows].

    Answers token ids int64 [rows], -1 where a logit is NaN or infinite or no token is allowed; and bool [rows]: whether
    all logits of the row are finite.
    """
    tokens = []
    for i, row in enumerate(logits.double().tolist()):
        if any(math.isnan(value) or value == math.inf for value in row) or max(row) == NEVER:
            tokens.append(-1)
            continue
        heat, least, k, mass = (float(t[i]) for t in (temperature, min_p, top_k, top_p))
        tokens.append(draw(cut(row, heat=heat, least=least, k=int(k), mass=mass), float(uniforms[i])))
    return torch.tensor(tokens, dtype=torch.int64), torch.isfinite(logits).all(dim=-1)


def splitmix_uniform(seed: int, position: int) -> float:
    """Number ``position`` of the SplitMix64 stream whose state is the first output of the stream of ``seed``."""
    return (_splitmix(_splitmix(seed, 0), position) >> 11) * 2.0**-53


def _splitmix(state: int, steps: int) -> int:
    mask = (1 << 64) - 1
    z = (state + (steps + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)
