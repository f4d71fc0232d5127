"""Targets to a record's streams: the quantisation, and what each stream holds. `raw.py` and `decode.py` read them.

    1 lengths        entries of each position, u8 or wider; 0 = no target here. Sampled: empty where every position has
                     the same number of draws, for then the counts tell
    2 ids            as frequency ranks u32, or as ranks local to the row where stream 10 has values. Truncated: in
                     descending probability. Sampled: ascending; first absolute, then gaps
    3 logprobs       q on the grid u16. Truncated: first absolute, then differences, and the entries of a row sorted by
                     the class of their place (order.py). Sampled: absolute
    4 rest           logit of the mass that is not kept, u16; 65535 = nothing
    5 counts         draws that fell on the id, u8 or wider (sampled)
    6 normaliser     log sum_v p_v^(1/tau), u16. Sampled from a proposal other than p: at its temperature. Truncated:
                     at the temperature that the manifest names as lse_tau
    7 label_logprob  u16    8 entropy  u16    9 logit_std  u16
    10 local         class u8 of each frequency rank by how often the row keeps it; empty: ids are not local (order.py)

n rows  N = n * T positions  E entries of all of them  V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.store import codec
from predistill.store.grids import NOTHING, Grid, logit_of_log
from predistill.store.order import FEW_ENTRIES, class_parts, local_classes, place_parts, places, rank_of_local
from predistill.store.record import KIND_SAMPLED, KIND_TRUNCATED, pack
from predistill.store.rows import RowTargets

__all__ = ["PER_POSITION", "STREAM_NAMES", "encode_row"]

LENGTHS, IDS, LOGPROBS, REST, COUNTS, NORMALISER, LABEL, ENTROPY, STD, LOCAL = range(1, 11)
STREAM_NAMES = {
    LENGTHS: "lengths",
    IDS: "ids",
    LOGPROBS: "logprobs",
    REST: "rest",
    COUNTS: "counts",
    NORMALISER: "normaliser",
    LABEL: "label",
    ENTROPY: "entropy",
    STD: "std",
    LOCAL: "local",
}
PER_POSITION = {  # field of RowTargets -> (stream, grid)
    "normaliser_N": (NORMALISER, "normaliser"),
    "label_logprob_N": (LABEL, "label_logprob"),
    "entropy_N": (ENTROPY, "entropy"),
    "logit_std_N": (STD, "logit_std"),
}


def encode_row(
    targets: RowTargets, *, token_hash: int, rank_of_V: npt.NDArray[np.uint32], grids: Mapping[str, Grid]
) -> bytes:
    """The record of one row.

    Raises `ValueError` (one clause) when the targets break the format's rules: a NaN, an id outside the vocabulary or
    given twice, log-probabilities that ascend, a missing log-probability or rest.
    """
    assert len(targets.row_ids) == 1
    length_N = targets.length_N
    if length_N.min(initial=0) < 0:
        raise ValueError("a position has a negative length")
    ids_E = targets.ids_E
    if len(ids_E) and not (ids_E.min() >= 0 and ids_E.max() < len(rank_of_V)):
        raise ValueError(f"a token id is outside the vocabulary of {len(rank_of_V):,}")
    first_P = (np.cumsum(length_N, dtype=np.int64) - length_N)[length_N > 0]  # of each position with entries
    rank_E = np.take(rank_of_V, ids_E)
    # Orders by position, then rank; 32 bits, where they are enough, sort in half the time of 64.
    cells = len(length_N) * len(rank_of_V)
    cell_N = np.arange(0, cells, len(rank_of_V), dtype=np.min_scalar_type(cells))
    cell_E = np.repeat(cell_N, length_N) + rank_E
    ascending_E = np.sort(cell_E)
    if np.any(ascending_E[1:] == ascending_E[:-1]):
        raise ValueError("a position holds a token id twice")
    class_M = local_classes(rank_E, len(rank_of_V))
    if len(class_M):
        local_of_V = np.empty(len(rank_of_V), np.uint32)
        local_of_V[rank_of_local(class_M, len(rank_of_V))] = np.arange(len(rank_of_V), dtype=np.uint32)
        rank_E = np.take(local_of_V, rank_E)
    arrays: list[tuple[int, npt.NDArray[Any]]] = [(LENGTHS, _narrow(length_N))]
    parts: dict[int, list[int]] = {LOCAL: class_parts(len(class_M))}
    if targets.sampled:
        assert targets.count_E is not None
        if targets.count_E.min(initial=1) < 1:
            raise ValueError("a count is below 1")
        if _tells_lengths(targets.count_E, length_N):
            arrays = [(LENGTHS, np.zeros(0, np.uint8))]
        order_E = np.argsort(cell_E if not len(class_M) else np.repeat(cell_N, length_N) + rank_E)
        arrays.append((IDS, _differences(rank_E[order_E], first_P)))
        arrays.append((COUNTS, _narrow(targets.count_E[order_E])))
        if targets.logprob_E is not None:
            arrays.append((LOGPROBS, _quantise(targets.logprob_E, grids["logprob"], "logprob_E")[order_E]))
    else:
        if targets.logprob_E is None or targets.log_rest_N is None:
            raise ValueError("truncated targets need logprob_E and log_rest_N")
        q_E = _quantise(targets.logprob_E, grids["logprob"], "logprob_E")
        below_E = q_E[1:] < q_E[:-1]
        below_E[first_P[1:] - 1] = False  # the last entry of one position and the first of the next
        if below_E.any():
            raise ValueError("a position's ids are not in descending probability")
        arrays += [(IDS, rank_E), (LOGPROBS, _differences(q_E, first_P)[places(length_N)])]
        if len(ids_E) >= FEW_ENTRIES:
            parts[LOGPROBS] = place_parts(length_N)
    if targets.log_rest_N is not None:
        q_N = _quantise(logit_of_log(targets.log_rest_N), grids["rest_logit"], "log_rest_N")
        q_N[targets.log_rest_N == -np.inf] = NOTHING
        arrays.append((REST, q_N))
    for field, (stream, grid) in PER_POSITION.items():
        if (values_N := getattr(targets, field)) is not None:
            arrays.append((stream, _quantise(values_N, grids[grid], field)))
    arrays.append((LOCAL, class_M))
    streams = []
    for stream, values in arrays:
        cut = parts.get(stream)
        codec_number, payload = codec.encode_parts(values, cut) if cut else codec.encode(values)
        streams.append((stream, codec_number, codec.DTYPE_NUMBERS[values.dtype], len(values), payload))
    return pack(
        kind=KIND_SAMPLED if targets.sampled else KIND_TRUNCATED,
        row_id=int(targets.row_ids[0]),
        token_hash=token_hash,
        positions=targets.positions,
        entries=len(ids_E),
        streams=streams,
    )


def _tells_lengths(count_E: npt.NDArray[np.int32], length_N: npt.NDArray[np.int32]) -> bool:
    """Whether a row's counts alone tell where its positions end: all have the same number of draws."""
    if not len(length_N) or length_N.min() < 1:
        return False
    draws_N = np.add.reduceat(count_E, np.cumsum(length_N, dtype=np.int64) - length_N)
    return bool((draws_N == draws_N[0]).all())


def _quantise(values: npt.NDArray[Any], grid: Grid, name: str) -> npt.NDArray[np.uint16]:
    if np.isnan(values).any():
        raise ValueError(f"{name} holds a NaN")
    return grid.encode(values)


def _narrow(values: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
    largest = values.max(initial=0)
    return values.astype(np.min_scalar_type(largest).newbyteorder("<"))


def _differences(values_E: npt.NDArray[Any], first_P: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """First absolute, then the difference from the entry before; ascending values, same dtype."""
    difference_E = values_E.copy()
    difference_E[1:] -= values_E[:-1]
    difference_E[first_P] = values_E[first_P]
    return difference_E
