"""Targets to a record's streams and back: the quantisation, and what each stream holds.

    1 lengths        entries of each position, u8 or wider; 0 = no target here
    2 ids            as frequency ranks u32. Truncated: in descending probability. Sampled: ascending; first absolute,
                     then gaps
    3 logprobs       q on the grid u16. Truncated: first absolute, then differences. Sampled: absolute
    4 rest           logit of the mass that is not kept, u16; 65535 = nothing
    5 counts         draws that fell on the id, u8 or wider (sampled)
    6 normaliser     log sum_v p_v^(1/tau), u16 (sampled from a proposal other than p)
    7 label_logprob  u16    8 entropy  u16    9 logit_std  u16
    16 and up        reserved for log-sum-exps at temperatures that the manifest names

n rows  N = n * T positions  E entries of all of them  V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.store import codec
from predistill.store.grids import NOTHING, Grid, log_of_logit, logit_of_log
from predistill.store.record import KIND_SAMPLED, KIND_TRUNCATED, Record, check_readable, pack
from predistill.store.rows import OPTIONAL_FIELDS, RowTargets

__all__ = ["STREAM_NAMES", "decode_rows", "encode_row"]

LENGTHS, IDS, LOGPROBS, REST, COUNTS, NORMALISER, LABEL, ENTROPY, STD = range(1, 10)
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
}
_PER_POSITION = {  # field of RowTargets -> (stream, grid)
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
    start_N = np.cumsum(length_N, dtype=np.int64) - length_N
    first_E = np.zeros(len(ids_E), bool)
    first_E[start_N[length_N > 0]] = True
    rank_E = rank_of_V[ids_E]
    place_E = np.cumsum(first_E) << 32 | rank_E  # orders by position, then rank
    ascending_E = np.sort(place_E)
    if np.any(ascending_E[1:] == ascending_E[:-1]):
        raise ValueError("a position holds a token id twice")
    arrays: list[tuple[int, npt.NDArray[Any]]] = [(LENGTHS, _narrow(length_N))]
    if targets.sampled:
        assert targets.count_E is not None
        if targets.count_E.min(initial=1) < 1:
            raise ValueError("a count is below 1")
        order_E = np.argsort(place_E)
        arrays.append((IDS, _differences(rank_E[order_E], first_E)))
        arrays.append((COUNTS, _narrow(targets.count_E[order_E])))
        if targets.logprob_E is not None:
            arrays.append((LOGPROBS, _quantise(targets.logprob_E, grids["logprob"], "logprob_E")[order_E]))
    else:
        if targets.logprob_E is None or targets.log_rest_N is None:
            raise ValueError("truncated targets need logprob_E and log_rest_N")
        q_E = _quantise(targets.logprob_E, grids["logprob"], "logprob_E")
        if np.any((q_E[1:] < q_E[:-1]) & ~first_E[1:]):
            raise ValueError("a position's ids are not in descending probability")
        arrays += [(IDS, rank_E), (LOGPROBS, _differences(q_E, first_E))]
    if targets.log_rest_N is not None:
        q_N = _quantise(logit_of_log(targets.log_rest_N), grids["rest_logit"], "log_rest_N")
        q_N[targets.log_rest_N == -np.inf] = NOTHING
        arrays.append((REST, q_N))
    for field, (stream, grid) in _PER_POSITION.items():
        if (values_N := getattr(targets, field)) is not None:
            arrays.append((stream, _quantise(values_N, grids[grid], field)))
    streams = []
    for stream, values in arrays:
        codec_number, payload = codec.encode(values)
        streams.append((stream, codec_number, codec.DTYPE_NUMBERS[values.dtype], len(values), payload))
    return pack(
        kind=KIND_SAMPLED if targets.sampled else KIND_TRUNCATED,
        row_id=int(targets.row_ids[0]),
        token_hash=token_hash,
        positions=targets.positions,
        entries=len(ids_E),
        streams=streams,
    )


def decode_rows(
    records: Sequence[tuple[Record, bytes]],
    *,
    id_of_rank_V: npt.NDArray[np.int32],
    grids: Mapping[str, Grid],
    fields: Collection[str] | None = None,
    where: Callable[[int], str],
) -> RowTargets:
    """The targets of whole records of one kind, in their order; each stream is one decoder call a row.

    `fields` names the optional arrays wanted (`OPTIONAL_FIELDS`; None: whatever is stored). Raises `ValueError`
    beginning with `where(i)`, the i-th record's place, for what does not fit together.
    """
    tables = [{stream.id: stream for stream in record.streams if stream.id in STREAM_NAMES} for record, _ in records]
    kind, positions, present = records[0][0].kind, records[0][0].positions, tables[0].keys()
    entry_ends = np.cumsum([record.entries for record, _ in records])
    for i, (record, _) in enumerate(records):
        if (record.kind, record.positions, tables[i].keys()) != (kind, positions, present):
            raise ValueError(f"{where(i)}its kind, its length or its streams are not those of the rows around it")

    def read(stream_id: int, dtype: str) -> npt.NDArray[Any]:
        per_entry = stream_id in (IDS, LOGPROBS, COUNTS)
        out = np.empty(int(entry_ends[-1]) if per_entry else len(records) * positions, dtype)
        end = 0
        for i, (record, data) in enumerate(records):
            stream = tables[i][stream_id]
            expected = record.entries if per_entry else positions
            start, end = end, end + expected
            try:
                check_readable(stream)
                if stream.values != expected:
                    raise ValueError(f"{stream.values:,} values, expected {expected:,}")
                payload = data[stream.start : stream.start + stream.bytes]
                codec.decode_into(stream.codec, payload, dtype=codec.DTYPES[stream.dtype], out=out[start:end])
            except ValueError as error:
                raise ValueError(f"{where(i)}stream {STREAM_NAMES[stream_id]}: {error}") from None
        return out

    needed = {LENGTHS, IDS, COUNTS} if kind == KIND_SAMPLED else {LENGTHS, IDS, LOGPROBS, REST}
    if missing := needed - present:
        raise ValueError(f"{where(0)}it has no stream {STREAM_NAMES[min(missing)]}")
    length_N = read(LENGTHS, "<u4").astype(np.int32)
    sums = length_N.reshape(len(records), positions).sum(axis=1, dtype=np.int64)
    for i, (record, _) in enumerate(records):
        if sums[i] != record.entries:
            raise ValueError(f"{where(i)}its lengths sum to {sums[i]:,}, its header says {record.entries:,} entries")
    rank_E = read(IDS, "<u4")
    start_N = np.cumsum(length_N, dtype=np.int64) - length_N
    if kind == KIND_SAMPLED:
        rank_E = _undo_differences(rank_E, start_N, length_N)
    if len(rank_E) and rank_E.max() >= len(id_of_rank_V):
        i = int(np.searchsorted(entry_ends, rank_E.argmax(), side="right"))
        raise ValueError(f"{where(i)}an id's rank is outside the vocabulary of {len(id_of_rank_V):,}")
    arrays: dict[str, Any] = {"length_N": length_N, "ids_E": np.take(id_of_rank_V, rank_E)}
    if kind == KIND_SAMPLED:
        arrays["count_E"] = read(COUNTS, "<u4").astype(np.int32)
    if REST in present:
        q_N = read(REST, "<u2")
        logit_N = grids["rest_logit"].decode(q_N).astype(np.float64)
        logit_N[q_N == NOTHING] = -np.inf
        log_rest_N, log_kept_N = log_of_logit(logit_N)
        arrays["log_rest_N"] = log_rest_N.astype(np.float32)
    if LOGPROBS in present:
        q_E = read(LOGPROBS, "<u2")
        if kind == KIND_SAMPLED:
            arrays["logprob_E"] = grids["logprob"].decode(q_E)
        else:
            q_E = _undo_differences(q_E, start_N, length_N)
            arrays["logprob_E"] = _scale_to_kept(q_E, grids["logprob"], log_kept_N, start_N, length_N)
    wanted = ("normaliser_N", *(OPTIONAL_FIELDS if fields is None else fields))
    for field in wanted:
        stream_id, grid = _PER_POSITION[field]
        if stream_id in present:
            arrays[field] = grids[grid].decode(read(stream_id, "<u2"))
    row_ids = np.array([record.row_id for record, _ in records], np.int64)
    return RowTargets(row_ids=row_ids, positions=positions, **arrays)


def _scale_to_kept(
    q_E: npt.NDArray[np.uint16],
    grid: Grid,
    log_kept_N: npt.NDArray[np.float64],
    start_N: npt.NDArray[np.int64],
    length_N: npt.NDArray[np.int32],
) -> npt.NDArray[np.float32]:
    """Log-probabilities, each position shifted by a constant so that its kept mass is 1 - rest, and at most 0.

    The grid alone misses the kept mass by up to half a step, 8e-3 of it.
    """
    logprob_E = grid.decode(q_E)
    has_N = length_N > 0
    shift_N = np.zeros(len(length_N), np.float32)
    if has_N.any():
        mass_H = np.add.reduceat(np.take(_probabilities(grid), q_E), start_N[has_N])
        # Entries that are all beyond e^-87 sum to 0 in float32: nothing to scale by.
        shift_N[has_N] = np.where(mass_H > 0, log_kept_N[has_N] - np.log(np.maximum(mass_H, 1e-38)), 0.0)
    logprob_E += np.repeat(shift_N, length_N)
    return np.minimum(logprob_E, np.float32(0.0), out=logprob_E)


@lru_cache(maxsize=8)
def _probabilities(grid: Grid) -> npt.NDArray[np.float32]:
    """exp of every value of a grid of log-probabilities: looking it up takes a third of the time of exp."""
    return np.exp(grid.decode(np.arange(1 << 16, dtype=np.uint16)))


def _quantise(values: npt.NDArray[Any], grid: Grid, name: str) -> npt.NDArray[np.uint16]:
    if np.isnan(values).any():
        raise ValueError(f"{name} holds a NaN")
    return grid.encode(values)


def _narrow(values: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
    largest = values.max(initial=0)
    return values.astype(np.min_scalar_type(largest).newbyteorder("<"))


def _differences(values_E: npt.NDArray[Any], first_E: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """First absolute, then the difference from the entry before; ascending values, same dtype."""
    before_E = np.concatenate((values_E[:1], values_E[:-1]))
    return np.where(first_E, values_E, values_E - before_E).astype(values_E.dtype)


def _undo_differences(
    difference_E: npt.NDArray[Any], start_N: npt.NDArray[np.int64], length_N: npt.NDArray[np.int32]
) -> npt.NDArray[Any]:
    """The inverse of `_differences`: one running sum, less its value where each position starts.

    Modulo 2^32, so the running sum may wrap; numpy adds 32-bit integers four times as fast as 16-bit ones.
    """
    sum_E = np.cumsum(difference_E, dtype=np.uint32)
    before_N = np.concatenate((np.zeros(1, np.uint32), sum_E))[start_N]
    sum_E -= np.repeat(before_N, length_N)
    return sum_E.astype(difference_E.dtype, copy=False)
