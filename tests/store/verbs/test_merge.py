"""Merging: rows of several stores in one, as they were; and what is not one store's is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predistill.errors import StoreError
from predistill.store import RowTargets, Store, StoreWriter
from predistill.store.verbs.merge import merge
from tests.store.made import PERMUTATION, SAMPLED, TRUNCATED, sampled_row, token_hash, truncated_row, write_store

ROWS = 9
OTHER = np.roll(PERMUTATION, 300)


def part(
    path: Path, rows: Any, *, facts: dict[str, Any] = TRUNCATED, permutation: np.ndarray = PERMUTATION, **cut: Any
) -> Path:
    """A partial store of some of nine rows."""
    make = sampled_row if "sampling" in facts else truncated_row
    with StoreWriter(path, manifest=facts, permutation=permutation) as writer:
        for row in rows:
            writer.write(row, token_hash(row), make(row, **cut))
        writer.add_cost("capture", {"tokens": 32 * len(list(rows)), "seconds": 1.0})
        writer.seal({"sample_rows": len(list(rows)), "mean_entries": float(rows[0])}, rows_expected=ROWS, partial=True)
    return path


def capture_facts(threads: int, facts: dict[str, Any] = TRUNCATED) -> dict[str, Any]:
    return {**facts, "capture": {"threads": threads}}


def assert_same(found: RowTargets, expected: RowTargets) -> None:
    """Targets are equal; sampled ones whatever the order of their ids."""
    order = [np.lexsort((t.ids_E, np.repeat(np.arange(len(t.length_N)), t.length_N))) for t in (found, expected)]
    for name in ("ids_E", "logprob_E", "count_E"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        if theirs is not None:
            if expected.sampled:
                ours, theirs = ours[order[0]], theirs[order[1]]
            assert np.array_equal(ours, theirs), name
    for name in ("length_N", "log_rest_N", "entropy_N", "logit_std_N", "label_logprob_N", "normaliser_N"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None and theirs is None) or np.array_equal(ours, theirs), name


def test_parts_of_one_capture_become_that_store_byte_for_byte(tmp_path: Path) -> None:
    whole = write_store(tmp_path / "whole", rows=ROWS)
    merged = merge(
        [part(tmp_path / "a", (0, 3, 4, 8)), part(tmp_path / "b", (1, 2, 5, 6, 7))],
        out=tmp_path / "m",
        shard_bytes=20_000,
    )
    assert merged.manifest["store_id"] == Store(whole).manifest["store_id"]
    assert merged.totals == Store(whole).totals
    for shard in (whole / "shards").iterdir():
        assert (tmp_path / "m" / "shards" / shard.name).read_bytes() == shard.read_bytes()
    assert (tmp_path / "m" / "index.bin").read_bytes() == (whole / "index.bin").read_bytes()
    merged.verify()


@pytest.mark.parametrize("facts", [TRUNCATED, SAMPLED], ids=["truncated", "sampled"])
def test_other_ranks_and_other_captures_change_no_value(tmp_path: Path, facts: dict[str, Any]) -> None:
    a = part(tmp_path / "a", (0, 1, 5), facts=capture_facts(1, facts))
    b = part(tmp_path / "b", (2, 6), facts=capture_facts(2, facts), permutation=OTHER)
    merged = merge([a, b], out=tmp_path / "m")
    merged.verify()
    assert merged.present().tolist() == [0, 1, 2, 5, 6]
    for source in Store(a), Store(b):
        for row in source.present().tolist():
            assert_same(merged.rows([row], [token_hash(row)]), source.rows([row]))
            assert_same(merged.rows([row], scaled=False), source.rows([row], scaled=False))
    assert [origin["capture"]["threads"] for origin in merged.manifest["merged_from"]] == [1, 2]
    assert [origin["rows"] for origin in merged.manifest["merged_from"]] == [3, 2]
    assert merged.manifest["self_test"] == {"sample_rows": 5, "mean_entries": pytest.approx(0.8)}


def test_a_selected_store_merges_with_a_captured_one(tmp_path: Path) -> None:
    a, b = part(tmp_path / "a", (0, 1)), part(tmp_path / "b", (2,), facts={**TRUNCATED, "selected_from": "beef"})
    for stores in (a, b), (b, a):
        merged = merge(stores, out=tmp_path / f"m{stores[0].name}")
        assert "selected_from" not in merged.manifest
        assert [origin.get("selected_from") for origin in merged.manifest["merged_from"]].count("beef") == 1


def test_costs_come_along_once(tmp_path: Path) -> None:
    from predistill.store.verbs.costs import total_cost

    a, b = part(tmp_path / "a", (0, 1)), part(tmp_path / "b", (2, 3, 4))
    merged = merge([a, b], out=tmp_path / "m")
    assert total_cost(merged.place)["tokens"] == 32 * 5
    assert total_cost(merge([merged.path, a], out=tmp_path / "n").place)["tokens"] == 32 * 5


def test_a_row_that_is_in_both_is_taken_once_if_it_is_the_same(tmp_path: Path) -> None:
    a, b = part(tmp_path / "a", (0, 1)), part(tmp_path / "b", (1, 2), permutation=OTHER)
    merged = merge([a, b], out=tmp_path / "m")
    assert merged.present().tolist() == [0, 1, 2]
    assert merged.totals["rows"] == 3
    c = part(tmp_path / "c", (1, 2), p=0.9)
    with pytest.raises(StoreError, match=r"c: row 1 is in .*a too, and not the same there"):
        merge([a, c], out=tmp_path / "n")


def test_a_merge_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("predistill.store.verbs.merge.BATCH_ROWS", 2)
    a, b = part(tmp_path / "a", (0, 1, 4)), part(tmp_path / "b", (2, 3, 8))

    def stop(done: int, rows: int) -> None:
        assert rows == 6
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge([a, b], out=tmp_path / "m", on_progress=stop)
    merge([a, b], out=tmp_path / "m").verify()
    merge([a, b], out=tmp_path / "n")
    for file in ("shards/00000-000000.pds", "index.bin", "manifest.json"):
        assert (tmp_path / "m" / file).read_bytes() == (tmp_path / "n" / file).read_bytes()


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({**TRUNCATED, "teacher": {"name": "another"}}, "its teacher name is not that of"),
        ({**TRUNCATED, "corpus": {"fingerprint": "beef"}}, "its corpus fingerprint is not that of"),
        ({**TRUNCATED, "truncation": {"kind": "top_k", "k": 9}}, "its truncation is not that of"),
        (SAMPLED, "its sampling is not that of"),
    ],
)
def test_what_is_not_of_one_store_is_refused(tmp_path: Path, facts: dict[str, Any], says: str) -> None:
    a, b = part(tmp_path / "a", (0, 1)), part(tmp_path / "b", (2, 3), facts=facts)
    with pytest.raises(StoreError, match=says):
        merge([a, b], out=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_streams_that_only_one_has_are_refused(tmp_path: Path) -> None:
    a, b = part(tmp_path / "a", (0, 1)), part(tmp_path / "b", (2, 3), extras=False)
    with pytest.raises(StoreError, match="its streams is not that of"):
        merge([a, b], out=tmp_path / "m")


def test_one_store_is_nothing_to_merge_and_a_complete_place_is_not_written_to(tmp_path: Path) -> None:
    a, b = part(tmp_path / "a", (0, 1)), part(tmp_path / "b", (2, 3))
    with pytest.raises(StoreError, match="takes two stores or more"):
        merge([a], out=tmp_path / "m")
    with pytest.raises(StoreError, match="this store is complete"):
        merge([a, b], out=b)
