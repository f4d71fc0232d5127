"""Inspect: the facts add up, the page fits 80 columns, and a store in the making tells who is at work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from predistill.errors import StoreError
from predistill.store import Store, StoreWriter
from predistill.store.verbs.contents import contents
from predistill.store.verbs.shown import shown
from tests.store.made import PERMUTATION, SAMPLED, TRUNCATED, token_hash, truncated_row, write_store


@pytest.mark.parametrize("facts", [TRUNCATED, SAMPLED], ids=["truncated", "sampled"])
def test_bytes_and_shares_add_up(tmp_path: Path, facts: dict[str, object]) -> None:
    store = Store(write_store(tmp_path / "s", rows=5, facts=facts))
    found = contents(tmp_path / "s")
    streams = found["streams"].values()
    assert sum(stream["bytes"] for stream in streams) == found["bytes"] == store.totals["bytes"]
    assert sum(stream["share"] for stream in streams) == pytest.approx(1)
    assert sum(stream["per_position"] for stream in streams) == pytest.approx(found["bytes_per_position"])
    length_N = store.rows(range(5)).length_N
    assert found["sample"]["mean_entries"] == pytest.approx(length_N.mean())
    for line in found["sample"]["histogram"]:
        inside = (length_N >= line["from"]) & (length_N <= line["to"])
        assert line["share"] == pytest.approx(inside.mean())
    assert sum(line["share"] for line in found["sample"]["histogram"]) == pytest.approx(1)
    page = shown(found).splitlines()
    assert max(len(line) for line in page[1:]) <= 80
    assert all(line == line.rstrip() for line in page)


def test_of_a_partial_store_it_says_how_many_rows(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", manifest=TRUNCATED, permutation=PERMUTATION) as writer:
        writer.write(4, token_hash(4), truncated_row(4))
        writer.add_cost("capture", {"tokens": 32, "seconds": 2.0, "cpu_seconds": 3.0})
        writer.seal({}, rows_expected=9, partial=True)
    page = shown(contents(tmp_path / "s"))
    assert "1 of 9 rows of 32 tokens" in page
    assert "2.0 s, 16 tokens/s" in page


def test_a_store_in_the_making_tells_its_writers(tmp_path: Path) -> None:
    def writer(number: int) -> StoreWriter:
        return StoreWriter(
            tmp_path / "s", manifest=TRUNCATED, permutation=PERMUTATION, writer=number, shard_bytes=11_000
        )

    with writer(0) as first:
        for row in range(5):
            first.write(row, token_hash(row), truncated_row(row))
        first.finish()
    with writer(1) as second:
        second.write(5, token_hash(5), truncated_row(5))
    with writer(2) as third:
        third.write(6, token_hash(6), truncated_row(6))
        found = contents(tmp_path / "s")
        page = shown(found)
    assert [(line["number"], line["rows"], line["state"]) for line in found["writers"]] == [
        (0, 5, "finished"),
        (1, 1, "stopped"),
        (2, 1, "at work"),
    ]
    assert found["rows_there"] == 7
    assert "in the making: 7 rows are whole" in page
    assert max(len(line) for line in page.splitlines()[1:]) <= 80


def test_no_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no teacher store is here"):
        contents(tmp_path / "none")


def test_histogram_bins_hold_what_they_say() -> None:
    from predistill.store.verbs.contents import _histogram

    found = _histogram(np.array([0, 1, 2, 3, 4, 5, 100], np.int32))
    assert [(line["from"], line["to"]) for line in found] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 4),
        (5, 8),
        (9, 16),
        (17, 32),
        (33, 64),
        (65, 100),
    ]
    assert [(line["from"], line["to"]) for line in _histogram(np.full(3, 5, np.int32))] == [(5, 5)]
