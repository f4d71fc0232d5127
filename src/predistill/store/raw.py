"""Records to the integers of their streams: everything is checked here, and nothing is computed yet.

The integers are what another device finishes, and what a shorter cut is made of without quantising again; `decode.py`
makes targets of them. What each stream holds stands in `streams.py`.

n rows  N = n * T positions  E entries of all of them  H positions with entries  V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.store import codec
from predistill.store.order import rank_of_local, sorted_place
from predistill.store.record import KIND_SAMPLED, Record, Stream, check_readable
from predistill.store.rows import OPTIONAL_FIELDS
from predistill.store.streams import COUNTS, IDS, LENGTHS, LOCAL, LOGPROBS, PER_POSITION, REST, STREAM_NAMES

__all__ = ["Empty", "Form", "Found", "RawRows", "fresh", "read_raw", "read_stream", "running"]

U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
Found = tuple[Record, bytes] | None  # a record and its bytes; None: the row is not in the store
Empty = Callable[[str, int, str], npt.NDArray[Any]]  # (name, size, dtype) -> an array to decode into

REST_OF_ALL = 65534  # of a row that is not in the store: nothing of its distributions is kept


@dataclass(frozen=True, slots=True)
class Form:
    """What all records of a store have in common."""

    sampled: bool
    positions: int  # T
    streams: frozenset[int]  # of those that this version knows
    vocab_size: int

    @property
    def needed(self) -> frozenset[int]:
        """The streams that a record cannot do without."""
        return frozenset({LENGTHS, IDS, COUNTS} if self.sampled else {LENGTHS, IDS, LOGPROBS, REST})

    @classmethod
    def of(cls, record: Record, *, vocab_size: int) -> Form:
        """That of a single record."""
        streams = frozenset(stream.id for stream in record.streams if stream.id in STREAM_NAMES)
        return cls(record.kind == KIND_SAMPLED, record.positions, streams, vocab_size)


@dataclass(frozen=True, slots=True)
class RawRows:
    """What a store holds of n whole rows: frequency ranks, and integers on the manifest's grids."""

    row_ids: npt.NDArray[np.int64]  # [n]
    positions: int  # T
    sampled: bool
    length_N: U32  # entries of each position
    rank_E: U32  # truncated: in descending probability; sampled: distinct within a position, any order
    q_E: U16 | None = None  # truncated: the first absolute, then differences; sampled: absolute
    count_E: U32 | None = None
    rest_N: U16 | None = None
    normaliser_N: U16 | None = None
    label_logprob_N: U16 | None = None
    entropy_N: U16 | None = None
    logit_std_N: U16 | None = None


def fresh(name: str, size: int, dtype: str) -> npt.NDArray[Any]:  # noqa: ARG001
    """A new array."""
    return np.empty(size, dtype)


def read_raw(
    records: Sequence[Found],
    *,
    row_ids: Sequence[int],
    form: Form,
    fields: Collection[str] | None = None,
    where: Callable[[int], str],
    empty: Empty = fresh,
) -> RawRows:
    """The integers of whole records, in their order; a row that is not in the store has no entries.

    `fields` names the optional arrays wanted (`OPTIONAL_FIELDS`; None: whatever is stored). Raises `ValueError`
    beginning with `where(i)`, the i-th record's place, for what does not fit together.
    """
    if missing := form.needed - form.streams:
        raise ValueError(f"{where(0)}it has no stream {STREAM_NAMES[min(missing)]}")
    for i, found in enumerate(records):
        if found is not None and Form.of(found[0], vocab_size=form.vocab_size) != form:
            raise ValueError(f"{where(i)}its kind, its length or its streams are not those of the rows around it")

    def read(stream_id: int, dtype: str, absent: int = 0) -> Any:
        return read_stream(records, stream_id, dtype, positions=form.positions, absent=absent, where=where, empty=empty)

    length_N, count_E = read(LENGTHS, "<u4"), read(COUNTS, "<u4") if COUNTS in form.streams else None
    if count_E is not None:
        _tell_lengths(records, length_N, count_E, positions=form.positions, where=where)
    sums = length_N.reshape(-1, form.positions).sum(axis=1, dtype=np.uint64).tolist()
    for i, record in enumerate(records):
        if sums[i] != (entries := record[0].entries if record else 0):
            raise ValueError(f"{where(i)}its lengths sum to {sums[i]:,}, its header says {entries:,} entries")
    rank_E = read(IDS, "<u4")
    if (outside := _outside(rank_E, length_N, form)) is not None:
        place = where(outside // form.positions)
        raise ValueError(f"{place}an id's rank is outside the vocabulary of {form.vocab_size:,}")
    if form.sampled:
        rank_E = running(rank_E, length_N)
    q_E = read(LOGPROBS, "<u2") if LOGPROBS in form.streams else None
    q_E = q_E if q_E is None or form.sampled else _in_place(records, q_E, length_N, form, empty)
    _undo_local(records, rank_E, form, where=where)
    wanted = ("normaliser_N", *(OPTIONAL_FIELDS if fields is None else fields))
    return RawRows(
        row_ids=np.array(row_ids, np.int64),
        positions=form.positions,
        sampled=form.sampled,
        length_N=length_N,
        rank_E=rank_E,
        q_E=q_E,
        count_E=count_E,
        rest_N=read(REST, "<u2", REST_OF_ALL) if REST in form.streams else None,
        **{field: read(PER_POSITION[field][0], "<u2") for field in wanted if PER_POSITION[field][0] in form.streams},
    )


def read_stream(
    records: Sequence[Found],
    stream_id: int,
    dtype: str,
    *,
    positions: int,
    absent: int = 0,
    where: Callable[[int], str],
    empty: Empty = fresh,
) -> npt.NDArray[Any]:
    """One stream of whole records, one behind the other; `absent` at the positions of a row that is not in the store.

    Allocates no more than the records' headers name. Raises `ValueError` as `read_raw` does.
    """
    sizes = [positions] * len(records)
    if stream_id in (IDS, LOGPROBS, COUNTS):
        sizes = [found[0].entries if found else 0 for found in records]
    out = empty(STREAM_NAMES[stream_id], sum(sizes), dtype)
    end = 0
    for i, found in enumerate(records):
        start, end = end, end + sizes[i]
        if found is None:
            out[start:end] = absent
            continue
        record, data = found
        try:
            stream = stream_of(record, stream_id)
            check_readable(stream)
            if stream_id == LENGTHS and not stream.values and record.kind == KIND_SAMPLED:  # the counts tell
                out[start:end] = absent
                continue
            if stream.values != end - start:
                raise ValueError(f"{stream.values:,} values, expected {end - start:,}")
            payload = data[stream.start : stream.start + stream.bytes]
            codec.decode_into(stream.codec, payload, dtype=codec.DTYPES[stream.dtype], out=out[start:end])
        except ValueError as error:
            raise ValueError(f"{where(i)}stream {STREAM_NAMES[stream_id]}: {error}") from None
    return out


def stream_of(record: Record, stream_id: int) -> Stream:
    """The stream of a record; `ValueError` when it has none."""
    for stream in record.streams:
        if stream.id == stream_id:
            return stream
    raise ValueError("it is missing")


def running(difference_E: npt.NDArray[Any], length_N: npt.NDArray[Any]) -> U32:
    """The running sum of each position, modulo 2^32: one of all, less its value where the position starts."""
    lengths = length_N.astype(np.intp)
    sum_E = np.empty(len(difference_E) + 1, np.uint32)
    sum_E[0] = 0
    difference_E.cumsum(out=sum_E[1:], dtype=np.uint32)
    before_E = sum_E[lengths.cumsum() - lengths].repeat(lengths)
    return np.subtract(sum_E[1:], before_E, out=before_E)


def _tell_lengths(
    records: Sequence[Found], length_N: U32, count_E: U32, *, positions: int, where: Callable[[int], str]
) -> None:
    """Fill in the lengths of rows whose counts tell them: each position has the same number of draws."""
    end = 0
    for i, found in enumerate(records):
        start, end = end, end + (found[0].entries if found else 0)
        if found is None or not positions or stream_of(found[0], LENGTHS).values:
            continue
        drawn_E = count_E[start:end].cumsum(dtype=np.uint64)
        draws, left = divmod(int(drawn_E[-1]) if len(drawn_E) else 0, positions)
        drawn_N = np.arange(1, positions + 1, dtype=np.uint64) * np.uint64(draws)
        end_N = drawn_E.searchsorted(drawn_N) + 1
        if left or not draws or (drawn_E[end_N - 1] != drawn_N).any():
            raise ValueError(f"{where(i)}stream counts: they do not make the same number of draws at every position")
        length_N[i * positions : (i + 1) * positions] = np.diff(end_N, prepend=0)


def _in_place(records: Sequence[Found], q_E: U16, length_N: U32, form: Form, empty: Empty) -> U16:
    """Differences that were sorted by the class of their place, back in their places, row by row."""
    out = empty("logprobs in place", len(q_E), "<u2")
    end = 0
    for i, found in enumerate(records):
        start, end = end, end + (found[0].entries if found else 0)
        where_E = sorted_place(length_N[i * form.positions : (i + 1) * form.positions])
        q_E[start:end].take(where_E, out=out[start:end], mode="clip")
    return out


def _undo_local(records: Sequence[Found], rank_E: U32, form: Form, *, where: Callable[[int], str]) -> None:
    """Ranks local to a row become frequency ranks, in place."""
    end = 0
    for i, found in enumerate(records):
        start, end = end, end + (found[0].entries if found else 0)
        if found is None or LOCAL not in form.streams or not (stream := stream_of(found[0], LOCAL)).values:
            continue
        if stream.values > form.vocab_size:
            raise ValueError(f"{where(i)}stream local: {stream.values:,} values for {form.vocab_size:,} words")
        class_M = np.empty(stream.values, np.uint8)
        try:
            check_readable(stream)
            payload = found[1][stream.start : stream.start + stream.bytes]
            codec.decode_into(stream.codec, payload, dtype=codec.DTYPES[stream.dtype], out=class_M)
        except ValueError as error:
            raise ValueError(f"{where(i)}stream local: {error}") from None
        rank_of_local(class_M, form.vocab_size).take(rank_E[start:end], out=rank_E[start:end], mode="clip")


def _outside(rank_E: U32, length_N: U32, form: Form) -> int | None:
    """The first position that names a rank outside the vocabulary."""
    if not len(rank_E):
        return None
    if not form.sampled and rank_E.max() < form.vocab_size:
        return None
    end_N = np.cumsum(length_N, dtype=np.int64)
    if not form.sampled:
        return int(np.searchsorted(end_N, rank_E.argmax(), side="right"))
    position_H = np.flatnonzero(length_N)
    last_H = np.add.reduceat(rank_E, (end_N - length_N)[position_H], dtype=np.uint64)  # the sum of the gaps
    outside_H = position_H[last_H >= form.vocab_size]
    return int(outside_H[0]) if len(outside_H) else None
