"""The two orders of a row: each undone exactly, each told only where it pays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predistill.store.codec import PARTS
from predistill.store.decode import decode_record
from predistill.store.grids import GRIDS
from predistill.store.order import (
    PLACES,
    class_parts,
    local_classes,
    place_parts,
    places,
    rank_of_local,
)
from predistill.store.record import Record, parse
from predistill.store.rows import RowTargets
from predistill.store.streams import IDS, LENGTHS, LOCAL, LOGPROBS, encode_row

lengths = st.lists(st.integers(0, 90), min_size=1, max_size=40).map(lambda values: np.array(values, np.int32))


@given(lengths)
def test_places_sorts_by_class_and_keeps_the_order_within_one(length_N: np.ndarray) -> None:
    slots = [slot for length in length_N for slot in range(length)]
    classes = [sum(slot >= first for first in PLACES) for slot in slots]
    expected = sorted(range(len(slots)), key=lambda i: classes[i])
    np.testing.assert_array_equal(places(length_N), expected)
    assert place_parts(length_N) == [classes.count(i + 1) for i in range(len(PLACES))]


@given(st.lists(st.integers(0, 255), max_size=60), st.integers(60, 90))
def test_local_ranks_are_a_permutation_in_descending_class(classes: list[int], vocab_size: int) -> None:
    rank_V = rank_of_local(np.array(classes, np.uint8), vocab_size)
    padded = classes + [0] * (vocab_size - len(classes))
    assert rank_V.tolist() == sorted(range(vocab_size), key=lambda rank: -padded[rank])


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 1000, 50_000])
def test_the_parts_of_the_classes_cover_them(size: int) -> None:
    parts = class_parts(size)
    assert sum(parts) == size
    assert all(part > 0 for part in parts)
    assert len(parts) < 256


def row(rng: np.random.Generator, *, vocab_size: int, positions: int, own: int, length: int) -> RowTargets:
    """Truncated targets that keep words of the row's own much more often than others."""
    mine = rng.choice(vocab_size, own, replace=False)
    ids, lengths = [], []
    for _ in range(positions):
        some = np.concatenate((rng.choice(mine, min(own, length), replace=False), rng.choice(vocab_size, 5)))
        ids.append(rng.permutation(np.unique(some)))
        lengths.append(len(ids[-1]))
    logprob = np.concatenate([np.sort(-8 * rng.random(n))[::-1] for n in lengths])
    return RowTargets(
        row_ids=np.array([7]),
        positions=positions,
        length_N=np.array(lengths, np.int32),
        ids_E=np.concatenate(ids).astype(np.int32),
        logprob_E=logprob.astype(np.float32),
        log_rest_N=np.full(positions, -2.0, np.float32),
    )


def encoded(targets: RowTargets, vocab_size: int) -> tuple[Record, bytes]:
    data = encode_row(targets, token_hash=1, rank_of_V=np.arange(vocab_size, dtype=np.uint32), grids=GRIDS)
    return parse(data), data


def stream_bytes(record: Record, *ids: int) -> int:
    return sum(stream.bytes for stream in record.streams if stream.id in ids)


def test_a_row_with_words_of_its_own_is_told_them_and_takes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = row(np.random.default_rng(1), vocab_size=20_000, positions=300, own=400, length=40)
    record, data = encoded(targets, 20_000)
    by_id = {stream.id: stream for stream in record.streams}
    assert by_id[LOCAL].values > 0
    assert by_id[LOGPROBS].codec == PARTS
    found = decode_record(data, id_of_rank_V=np.arange(20_000, dtype=np.int32), grids=GRIDS)
    np.testing.assert_array_equal(found.ids_E, targets.ids_E)
    np.testing.assert_array_equal(found.length_N, targets.length_N)
    assert np.abs(np.diff(found.logprob_E) - np.diff(targets.logprob_E))[:10].max() <= 1 / 64
    monkeypatch.setattr("predistill.store.streams.local_classes", lambda *_: np.zeros(0, np.uint8))
    plain, plain_data = encoded(targets, 20_000)
    assert stream_bytes(record, LOCAL, IDS) < 0.85 * stream_bytes(plain, LOCAL, IDS)
    same = decode_record(plain_data, id_of_rank_V=np.arange(20_000, dtype=np.int32), grids=GRIDS)
    np.testing.assert_array_equal(same.ids_E, found.ids_E)
    np.testing.assert_array_equal(same.logprob_E, found.logprob_E)


def test_a_row_without_words_of_its_own_is_told_none() -> None:
    rng = np.random.default_rng(2)
    assert len(local_classes(rng.integers(0, 5000, 3000).astype(np.uint32), 5000)) == 0
    assert len(local_classes(np.zeros(0, np.uint32), 10)) == 0


def drawn(rng: np.random.Generator, *, positions: int, draws: int, vocab_size: int) -> RowTargets:
    ids, counts, lengths = [], [], []
    for _ in range(positions):
        some, count = np.unique(rng.zipf(1.3, draws) % vocab_size, return_counts=True)
        order = rng.permutation(len(some))
        ids.append(some[order]), counts.append(count[order]), lengths.append(len(some))
    return RowTargets(
        row_ids=np.array([7]),
        positions=positions,
        length_N=np.array(lengths, np.int32),
        ids_E=np.concatenate(ids).astype(np.int32),
        count_E=np.concatenate(counts).astype(np.int32),
    )


def pairs(targets: RowTargets) -> list[set[tuple[int, int]]]:
    ends = np.cumsum(targets.length_N)[:-1]
    both = zip(np.split(targets.ids_E, ends), np.split(targets.count_E, ends), strict=True)
    return [set(zip(ids.tolist(), counts.tolist(), strict=True)) for ids, counts in both]


@pytest.mark.parametrize("draws", [1, 2, 50, 300])
def test_lengths_of_draws_come_from_their_counts(draws: int) -> None:
    targets = drawn(np.random.default_rng(draws), positions=60, draws=draws, vocab_size=3000)
    record, data = encoded(targets, 3000)
    assert next(stream.values for stream in record.streams if stream.id == LENGTHS) == 0
    found = decode_record(data, id_of_rank_V=np.arange(3000, dtype=np.int32), grids=GRIDS)
    np.testing.assert_array_equal(found.length_N, targets.length_N)
    assert pairs(found) == pairs(targets)


def test_lengths_are_told_where_a_position_has_no_draws_or_other_ones() -> None:
    targets = drawn(np.random.default_rng(3), positions=30, draws=20, vocab_size=900)
    one_more = targets.count_E.copy()
    one_more[-1] += 1
    last = int(targets.length_N[-1])
    without = replace(
        targets,
        length_N=np.append(targets.length_N[:-1], 0).astype(np.int32),
        ids_E=targets.ids_E[:-last],
        count_E=targets.count_E[:-last],
    )
    for changed in (replace(targets, count_E=one_more), without):
        record, data = encoded(changed, 900)
        assert next(stream.values for stream in record.streams if stream.id == LENGTHS) == 30
        found = decode_record(data, id_of_rank_V=np.arange(900, dtype=np.int32), grids=GRIDS)
        np.testing.assert_array_equal(found.length_N, changed.length_N)
        assert pairs(found) == pairs(changed)
