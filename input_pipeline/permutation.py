"""A different order of the data set in every epoch, computed for one position at a time.

A Feistel network permutes 0 .. 4^k - 1, the smallest such range that holds all n examples; a
result outside 0 .. n - 1 is permuted again until it falls inside (cycle walking), which leaves a
permutation of 0 .. n - 1. Only integer arithmetic modulo 2^64 is used, so that the order depends
neither on the machine nor on a library's random number generator.
"""

import numpy as np
from jaxtyping import Int64, UInt64

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def example_index(
    position: int | Int64[np.ndarray, "..."], n: int, seed: int
) -> Int64[np.ndarray, "..."]:
    """Example read at a position of the endless training stream; every n positions are an epoch."""
    position = np.asarray(position, np.int64)
    return permute(position % n, n, seed, epoch=position // n)


def permute(
    index: int | Int64[np.ndarray, "..."],
    n: int,
    seed: int,
    epoch: int | Int64[np.ndarray, "..."],
) -> Int64[np.ndarray, "..."]:
    """Image of `index` under the permutation of 0 .. n - 1 that belongs to (seed, epoch).

    `index` and `epoch` broadcast. Raises ValueError for an index outside 0 .. n - 1.
    """
    index, epoch = np.broadcast_arrays(np.asarray(index, np.int64), np.asarray(epoch, np.int64))
    if n < 1 or np.any((index < 0) | (index >= n)):
        raise ValueError(
            f"permute: expected indices in 0 .. n - 1 and n >= 1, got n = {n}, {index}"
        )
    keys = _round_keys(seed, epoch.reshape(-1))
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    result = _feistel(index.reshape(-1).astype(np.uint64), keys, half_bits)
    while np.any(outside := result >= n):
        result[outside] = _feistel(result[outside], keys[:, outside], half_bits)
    return result.astype(np.int64).reshape(index.shape)


def _round_keys(seed: int, epoch: Int64[np.ndarray, " k"]) -> UInt64[np.ndarray, "rounds k"]:
    start = np.asarray([seed % 2**64], np.uint64)
    state = _mix(_mix(start) ^ epoch.astype(np.uint64))
    rounds = np.arange(1, _ROUNDS + 1, dtype=np.uint64)[:, None]
    return _mix(state + rounds * _GOLDEN)


def _feistel(
    value: UInt64[np.ndarray, " k"], keys: UInt64[np.ndarray, "rounds k"], half_bits: int
) -> UInt64[np.ndarray, " k"]:
    shift, low = np.uint64(half_bits), np.uint64(2**half_bits - 1)
    left, right = value >> shift, value & low
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & low)
    return (left << shift) | right


def _mix(value: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
