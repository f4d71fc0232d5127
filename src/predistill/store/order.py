"""Two orders that make a row smaller: ids ranked by how often the row itself keeps them, and differences of
log-probabilities sorted by their place in the position.

A document has its own words: which of them a row keeps often is told once, in a class a frequency rank, and an id costs
the less the more often its row keeps it. Differences are large at the head of a distribution and small at its end: each
place has its own statistics.

E entries of a row  V vocabulary
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = [
    "FEW_ENTRIES",
    "PLACES",
    "class_parts",
    "local_classes",
    "place_parts",
    "places",
    "rank_of_local",
    "sorted_place",
]

Ints = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]

PLACES = (0, 1, 2, 4, 8, 16, 32)  # the first place of each class of places
_PLACE_CLASS = np.searchsorted(PLACES, np.arange(PLACES[-1] + 1), side="right").astype(np.uint8) - 1
_FIRSTS = np.array(PLACES)
_WIDTHS = np.diff(_FIRSTS, append=np.iinfo(np.intp).max)
_COUNT_CLASS = np.array([0, *(count.bit_length() - 1 for count in range(1, 257))], np.uint8)  # 1 - 2 3 - 4 .. 7 - ...
FEW_ENTRIES = 4096  # a row of fewer is told neither classes nor parts: their own tables are not worth it
_LEAST_SAVING = 0.04
_FIRST_PART = 256  # frequency ranks of the first part of the classes; each part that follows doubles what there is


def places(length_N: npt.NDArray[np.integer]) -> Ints:
    """Where the entries of a row go when they are sorted by the class of their place: a stable order of E."""
    lengths = length_N.astype(np.intp)
    slot_E = np.arange(int(lengths.sum())) - (lengths.cumsum() - lengths).repeat(lengths)
    order_E: Ints = _PLACE_CLASS.take(slot_E, mode="clip").argsort(kind="stable")
    return order_E


def sorted_place(length_N: npt.NDArray[np.integer]) -> Ints:
    """Where each entry of a row is when they are sorted by the class of their place: `places` read backwards, without
    sorting. In each position the entries of a class lie side by side here and there."""
    run_NC = length_N.astype(np.intp)[:, None] - _FIRSTS  # entries of each position in each class
    run_NC = np.minimum(np.maximum(run_NC, 0, out=run_NC), _WIDTHS, out=run_NC)
    here_NC = run_NC.ravel().cumsum().reshape(run_NC.shape) - run_NC
    there_CN = run_NC.T.ravel().cumsum().reshape(run_NC.T.shape) - run_NC.T
    place_E: Ints = (there_CN.T - here_NC).ravel().repeat(run_NC.ravel())
    place_E += np.arange(len(place_E))
    return place_E


def place_parts(length_N: npt.NDArray[np.integer]) -> list[int]:
    """How many entries each class of places has."""
    reaching = [int(np.maximum(length_N.astype(np.int64) - place, 0).sum()) for place in PLACES]
    return [more - less for more, less in zip(reaching, [*reaching[1:], 0], strict=True)]


def local_classes(rank_E: U32, vocab_size: int) -> U8:
    """The class of each frequency rank by how often the row keeps it, to the last that is not 0; empty where that saves
    too little of the ids' bytes for the time it takes to read."""
    # A row that keeps every word of a small vocabulary many times has no words of its own: measured at V 2,048.
    if not FEW_ENTRIES <= len(rank_E) <= 8 * vocab_size:
        return np.zeros(0, np.uint8)
    count_V = np.bincount(rank_E, minlength=vocab_size)
    class_V = _COUNT_CLASS.take(count_V, mode="clip")
    used = class_V.nonzero()[0]
    if not len(used):
        return class_V[:0]
    class_M = class_V[: int(used[-1]) + 1]
    bits = _bits(count_V)
    saved = bits - _bits(count_V[rank_of_local(class_M, vocab_size)])
    told = sum(_entropy_bits(part) for part in np.split(class_M, np.cumsum(class_parts(len(class_M)))[:-1]))
    return class_M if saved - told > _LEAST_SAVING * bits else class_M[:0]


def class_parts(size: int) -> list[int]:
    """How the classes are cut: the further down, the more of them are 0."""
    ends = [0]
    while ends[-1] < size:
        ends.append(min(size, max(_FIRST_PART, 2 * ends[-1])))
    return [end - start for start, end in itertools.pairwise(ends)]


def rank_of_local(class_M: U8, vocab_size: int) -> U32:
    """Local rank -> frequency rank: by descending class, equals in their order."""
    told = (class_M != 0).nonzero()[0]  # few: sorting them alone takes a fifth of sorting all
    told = told[(np.uint8(255) - class_M[told]).argsort(kind="stable")]
    rank_V = np.empty(vocab_size, np.uint32)
    rank_V[: len(told)] = told
    rank_V[len(told) : len(class_M)] = (class_M == 0).nonzero()[0]
    rank_V[len(class_M) :] = np.arange(len(class_M), vocab_size, dtype=np.uint32)
    return rank_V


def _bits(count_V: npt.NDArray[np.integer]) -> float:
    """About what the entropy coder takes for ranks that occur so often: it codes the bin, and the place in the bin."""
    edges = _edges(len(count_V))
    count_B = np.add.reduceat(count_V, edges[:-1])
    width_B = np.diff(edges)
    has_B = count_B > 0
    return float((count_B[has_B] * np.log2(width_B[has_B] * (count_V.sum() / count_B[has_B]))).sum())


@lru_cache(maxsize=8)
def _edges(size: int) -> npt.NDArray[np.int64]:
    """Bins that are narrow at the frequent end, eight an octave."""
    edges = np.unique(np.geomspace(1, size + 1, 2 + 8 * int(np.log2(size + 1))).astype(np.int64)) - 1
    return np.unique([0, *edges, size])


def _entropy_bits(values: U8) -> float:
    count = np.bincount(values)
    count = count[count > 0]
    return float((count * np.log2(len(values) / count)).sum())
