"""Sample order as a pure function of (seed, epoch, position).

A keyed Feistel network is a bijection on 2^(2b) numbers; cycle walking cuts it down to any length. Looking up one
position costs the same for a thousand samples as for a billion, so resuming seeks in O(1) and needs no saved state.
Source: Black and Rogaway, "Ciphers with arbitrary finite domains" (CT-RSA 2002), the cycle-walking construction.
"""

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6  # four suffice against distinguishers (Luby-Rackoff); two more cost nothing that can be measured
_WORD = 0xFFFFFFFFFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 finalizer (Steele, Lea and Flood 2014): a bijective hash of 64-bit words, element by element."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(_MULTIPLIERS[0])
        values = (values ^ (values >> np.uint64(27))) * np.uint64(_MULTIPLIERS[1])
    return values ^ (values >> np.uint64(31))


def hash_key(*parts: int) -> int:
    """One 64-bit key from any number of integers; the order of the parts matters.

    mix64 in plain integers: for a single word they are ten times faster than arrays of length one.
    """
    state = 0
    for part in parts:
        state = (state + _GOLDEN + part) & _WORD
        state = ((state ^ (state >> 30)) * _MULTIPLIERS[0]) & _WORD
        state = ((state ^ (state >> 27)) * _MULTIPLIERS[1]) & _WORD
        state ^= state >> 31
    return state


def _feistel(values: NDArray[np.uint64], half_bits: int, round_keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    left, right = values >> shift, values & mask
    with np.errstate(over="ignore"):
        for key in round_keys:
            left, right = right, left ^ (mix64(right + key) & mask)
    return (left << shift) | right


def permute(positions: NDArray[np.int64], *, length: int, key: int) -> NDArray[np.int64]:
    """Where a keyed pseudo-random permutation of range(length) sends each position.

    Args:
        positions: any shape, values in [0, length).
        length: size of the permuted set, at least 1.
        key: which permutation; see hash_key.

    Returns:
        Same shape, values in [0, length), distinct for distinct positions.

    Raises:
        ValueError: a position lies outside [0, length).
    """
    if length < 1 or (positions.size and (positions.min() < 0 or positions.max() >= length)):
        raise ValueError(f"positions must lie in [0, {length})")
    half_bits = max(1, ((length - 1).bit_length() + 1) // 2)
    round_keys = np.array([hash_key(key, number) for number in range(_ROUNDS)], dtype=np.uint64)
    walked = _feistel(positions.astype(np.uint64), half_bits, round_keys)
    outside = walked >= length
    while outside.any():  # each walk ends: the cycle of an inside position comes back inside
        walked[outside] = _feistel(walked[outside], half_bits, round_keys)
        outside = walked >= length
    return walked.astype(np.int64)


def sample_indices(start: int, stop: int, *, num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Sample indices at positions [start, stop) of one epoch, shape (stop - start,)."""
    positions = np.arange(start, stop, dtype=np.int64)
    return permute(positions, length=num_samples, key=hash_key(seed, epoch))
