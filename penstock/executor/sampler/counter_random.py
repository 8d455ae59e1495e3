"""Counter-based random numbers: a pure function of (seed, position). Knows no state and no generator object."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1

U64 = npt.NDArray[np.uint64]


def _mix(z: U64) -> U64:
    """The finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(seeds: U64, positions: U64) -> npt.NDArray[np.float64]:
    """One number in [0, 1) with 53 random bits per entry: element ``positions`` of the SplitMix64 stream whose start
    is the mixed seed. seeds, positions [n] uint64 -> [n] float64."""
    start = _mix(seeds + np.uint64(_GOLDEN))
    bits = _mix(start + (positions + np.uint64(1)) * np.uint64(_GOLDEN))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def derived_seed(engine_seed: int, request_id: int) -> int:
    """The seed of a request that brings none: differs per request, repeats with the engine's seed."""
    words = np.array([engine_seed & _MASK, request_id & _MASK], dtype=np.uint64)
    mixed = _mix(words + np.array([_GOLDEN, 2 * _GOLDEN & _MASK], dtype=np.uint64))
    return int(_mix(mixed[:1] ^ (mixed[1:] << np.uint64(1)))[0])


def seed_of(seed: int | None, engine_seed: int, request_id: int) -> int:
    """The 64 bits that a request's random numbers come from."""
    return derived_seed(engine_seed, request_id) if seed is None else seed & _MASK
