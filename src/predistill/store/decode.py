"""The integers of a store's rows to targets: running sums, ids of ranks, log-probabilities scaled to the kept mass.

It goes by blocks, whose temporary arrays stay in the processor's cache and are small enough for the C library to keep:
fresh pages took half of the time of reading many rows at once.

n rows  N = n * T positions  E entries of all of them  H positions with entries  V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.store.grids import NOTHING, Grid, log_of_logit
from predistill.store.raw import Form, Found, RawRows, read_raw, running
from predistill.store.record import parse
from predistill.store.rows import RowTargets
from predistill.store.streams import PER_POSITION

__all__ = ["decode_record", "decode_rows", "finish", "log_rests", "values"]

BLOCK = 1 << 16  # entries; of 16 thousand the calls themselves cost as much as their work

Arrays = dict[str, npt.NDArray[Any]]


def decode_rows(
    records: Sequence[Found],
    *,
    row_ids: Sequence[int],
    form: Form,
    id_of_rank_V: npt.NDArray[np.int32],
    grids: Mapping[str, Grid],
    fields: Collection[str] | None = None,
    scaled: bool = True,
    where: Callable[[int], str],
) -> RowTargets:
    """`finish` of `read_raw`, a few records at a time."""
    entries = sum(found[0].entries for found in records if found)
    out: Arrays = {}
    buffers = _Buffers()
    n1 = e1 = 0
    for i0, i1 in _chunks(records):
        raw = read_raw(
            records[i0:i1], row_ids=row_ids[i0:i1], form=form, fields=fields, where=_from(i0, where), empty=buffers
        )
        out = out or _empty(raw, len(records) * form.positions, entries)
        n0, e0, n1, e1 = n1, e1, n1 + len(raw.length_N), e1 + len(raw.rank_E)
        cut = {"_N": slice(n0, n1), "_E": slice(e0, e1)}
        part = {name: array[cut[name[-2:]]] for name, array in out.items()}
        _finish_into(part, raw, id_of_rank_V=id_of_rank_V, grids=grids, scaled=scaled)
    return RowTargets(row_ids=np.array(row_ids, np.int64), positions=form.positions, **out)


def decode_record(data: bytes, *, id_of_rank_V: npt.NDArray[np.int32], grids: Mapping[str, Grid]) -> RowTargets:
    """The targets of one record that stands alone. Raises `ValueError`."""
    record = parse(data)
    form = Form.of(record, vocab_size=len(id_of_rank_V))
    return finish(
        read_raw([(record, data)], row_ids=[record.row_id], form=form, where=lambda _: ""),
        id_of_rank_V=id_of_rank_V,
        grids=grids,
    )


def finish(
    raw: RawRows, *, id_of_rank_V: npt.NDArray[np.int32], grids: Mapping[str, Grid], scaled: bool = True
) -> RowTargets:
    """The targets of raw rows. `scaled`: a position's log-probabilities are shifted by a constant so that its kept mass
    is 1 - rest, and at most 0; otherwise they are the grid's own."""
    out = _empty(raw, len(raw.length_N), len(raw.rank_E))
    _finish_into(out, raw, id_of_rank_V=id_of_rank_V, grids=grids, scaled=scaled)
    return RowTargets(row_ids=raw.row_ids, positions=raw.positions, **out)


@lru_cache(maxsize=16)
def values(grid: Grid) -> npt.NDArray[np.float32]:
    """Every value of a grid."""
    return grid.decode(np.arange(1 << 16, dtype=np.uint16))


@lru_cache(maxsize=8)
def log_rests(grid: Grid) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """(log of the rest, log of what is kept) of every value of a grid of the rest's logit."""
    logit = values(grid).astype(np.float64)
    logit[NOTHING] = -np.inf
    log_rest, log_kept = log_of_logit(logit)
    return log_rest.astype(np.float32), log_kept


class _Buffers:
    """Arrays to decode into, one a stream, used again for the next chunk."""

    def __init__(self) -> None:
        self._arrays: Arrays = {}

    def __call__(self, name: str, size: int, dtype: str) -> npt.NDArray[Any]:
        array = self._arrays.get(name)
        if array is None or len(array) < size:
            array = self._arrays[name] = np.empty(size, dtype)
        return array[:size]


def _chunks(records: Sequence[Found]) -> Iterator[tuple[int, int]]:
    """Neighbouring records (from, to) of about a block together, or one that is longer."""
    start = entries = 0
    for i, found in enumerate(records):
        more = found[0].entries if found else 0
        if i > start and entries + more > BLOCK:
            yield start, i
            start, entries = i, 0
        entries += more
    yield start, len(records)


def _from(first: int, where: Callable[[int], str]) -> Callable[[int], str]:
    return lambda i: where(first + i)


def _empty(raw: RawRows, positions: int, entries: int) -> Arrays:
    """Arrays for the targets of so many positions and entries, of the kind that `raw` holds."""
    out: Arrays = {"length_N": np.empty(positions, np.int32), "ids_E": np.empty(entries, np.int32)}
    if raw.count_E is not None:
        out["count_E"] = np.empty(entries, np.int32)
    if raw.q_E is not None:
        out["logprob_E"] = np.empty(entries, np.float32)
    if raw.rest_N is not None:
        out["log_rest_N"] = np.empty(positions, np.float32)
    return out | {field: np.empty(positions, np.float32) for field in PER_POSITION if getattr(raw, field) is not None}


def _finish_into(
    out: Arrays, raw: RawRows, *, id_of_rank_V: npt.NDArray[np.int32], grids: Mapping[str, Grid], scaled: bool
) -> None:
    out["length_N"][:] = raw.length_N
    for field, (_, name) in PER_POSITION.items():
        if field in out:
            values(grids[name]).take(getattr(raw, field), out=out[field], mode="clip")
    log_kept_N = None
    if raw.rest_N is not None:
        log_rest, log_kept = log_rests(grids["rest_logit"])
        log_rest.take(raw.rest_N, out=out["log_rest_N"], mode="clip")
        log_kept_N = log_kept.take(raw.rest_N) if scaled and not raw.sampled else None
    if raw.count_E is not None:
        out["count_E"][:] = raw.count_E
    length_N = raw.length_N.astype(np.intp)
    end_N = length_N.cumsum()
    step, origin = np.float32(grids["logprob"].step), np.float32(grids["logprob"].origin)
    for n, e in _blocks(end_N):
        lengths_N, start_N = length_N[n], end_N[n] - length_N[n] - e.start
        id_of_rank_V.take(raw.rank_E[e].astype(np.intp), out=out["ids_E"][e], mode="clip")  # they were checked
        if raw.q_E is not None:
            q_E = raw.q_E[e] if raw.sampled else running(raw.q_E[e], lengths_N)
            logprob_E = np.multiply(q_E, step, out=out["logprob_E"][e], dtype=np.float32, casting="unsafe")
            logprob_E += origin
            if log_kept_N is not None:
                _scale(logprob_E, log_kept_N[n], start_N, lengths_N)


def _blocks(end_N: npt.NDArray[np.intp]) -> Iterator[tuple[slice, slice]]:
    """(positions, entries), about a block at a time; none without entries."""
    n0 = e0 = 0
    while e0 < end_N[-1]:
        n1 = len(end_N)
        if end_N[-1] - e0 > 2 * BLOCK:
            n1 = max(n0 + 1, int(end_N.searchsorted(e0 + BLOCK, side="right")))
        e1 = int(end_N[n1 - 1])
        if e1 > e0:
            yield slice(n0, n1), slice(e0, e1)
        n0, e0 = n1, e1


def _scale(
    logprob_E: npt.NDArray[np.float32],
    log_kept_N: npt.NDArray[np.float64],
    start_N: npt.NDArray[np.intp],
    length_N: npt.NDArray[np.intp],
) -> None:
    """Shift each position by a constant so that its kept mass is 1 - rest; the grid alone misses it by up to half a
    step, 8e-3 of it."""
    if not length_N.all():
        has_N = length_N > 0
        log_kept_N, start_N, length_N = log_kept_N[has_N], start_N[has_N], length_N[has_N]
    mass_N = np.add.reduceat(np.exp(logprob_E), start_N)
    # Entries that are all beyond e^-87 sum to 0 in float32: nothing to scale by.
    shift_N = np.where(mass_N > 0, log_kept_N - np.log(np.maximum(mass_N, 1e-38)), 0.0)
    logprob_E += shift_N.astype(np.float32).repeat(length_N)
    if logprob_E.max() > 0:
        np.minimum(logprob_E, np.float32(0.0), out=logprob_E)
