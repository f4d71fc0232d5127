"""The order of the rows: a global batch is a function of (seed, step), in memory that does not grow with the corpus.

An epoch is a permutation of the rows: a balanced Feistel network over the next power of four, walked along its cycles
until it is back below the number of rows (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["batch_rows", "shuffled"]

TURNS = 10  # with 6, neighbours in an epoch of 16 rows are not independent (chi-square 8.2 per degree of freedom)
GOLDEN = 0x9E3779B97F4A7C15
MASK64 = (1 << 64) - 1

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]


def batch_rows(*, seed: int, step: int, batch_rows: int, corpus_rows: int) -> Int64s:
    """The rows of global batch `step` (from 0): int64[batch_rows], each in [0, corpus_rows), none twice in an epoch."""
    start = step * batch_rows
    return shuffled(np.arange(start, start + batch_rows, dtype=np.int64), seed=seed, corpus_rows=corpus_rows)


def shuffled(position: Int64s, *, seed: int, corpus_rows: int, source: int = 0) -> Int64s:
    """The rows at `position` of the endless shuffled stream of one corpus; `source` tells a mixture's corpora apart."""
    assert corpus_rows > 0
    row = np.empty_like(position)
    epochs = position // corpus_rows
    for epoch in np.unique(epochs):
        here = epochs == epoch
        row[here] = _permuted(position[here] % corpus_rows, key=_key(seed, source, int(epoch)), size=corpus_rows)
    return row


def _key(*parts: int) -> int:
    key = 0
    for part in parts:
        key = int(_mix(np.array([(key ^ part) & MASK64], dtype=np.uint64))[0])
    return key


def _permuted(index: Int64s, *, key: int, size: int) -> Int64s:
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    turn_keys = [np.uint64(_key(key, turn)) for turn in range(TURNS)]
    value = _feistel(index.astype(np.uint64), turn_keys, half_bits)
    while (outside := value >= np.uint64(size)).any():
        value[outside] = _feistel(value[outside], turn_keys, half_bits)
    return value.astype(np.int64)


def _feistel(value: UInt64s, turn_keys: list[np.uint64], half_bits: int) -> UInt64s:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = value >> shift, value & mask
    for turn_key in turn_keys:
        left, right = right, left ^ (_mix(right ^ turn_key) & mask)
    return (left << shift) | right


def _mix(value: UInt64s) -> UInt64s:
    """splitmix64 (Steele, Lea and Flood 2014): every bit of the result depends on every bit of `value`."""
    value = value + np.uint64(GOLDEN)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
