"""Repair: whatever is damaged, every whole record is kept, nobody's bytes are lost, and what is missing is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from predistill.errors import StoreError
from predistill.store import Store, StoreWriter, is_complete
from predistill.store.verbs.begun import seal
from predistill.store.verbs.repair import repair
from tests.store.made import PERMUTATION, SAMPLED, TRUNCATED, all_bytes, token_hash, truncated_row, write_store

ROWS = 12
SHARDS = "00000-000000.pds", "00000-000001.pds", "00000-000002.pds"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rows in three shards."""
    path = write_store(tmp_path_factory.mktemp("store") / "whole", rows=ROWS, shard_bytes=11_000)
    assert tuple(file.name for file in sorted((path / "shards").iterdir())) == SHARDS
    return path


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(whole, tmp_path / "s")
    return tmp_path / "s"


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 16
    path.write_bytes(data)


def lines(path: Path, shard: str) -> np.ndarray:
    """The footer of a shard."""
    from predistill.store.place import LocalFile
    from predistill.store.verbs.salvage import footer_of

    footer = footer_of(LocalFile(path / "shards" / shard))
    assert footer is not None
    return footer


def go_on(path: Path, rows: int = ROWS) -> list[int]:
    """What a capture does: write the rows that are missing, and seal; which they were."""
    done = []
    with StoreWriter(path, manifest=TRUNCATED, permutation=PERMUTATION, writer=1) as writer:
        from predistill.store.seal import PartsRows

        there = PartsRows(writer.place, store_id=writer.store_id, rows=rows)
        there.refresh()
        for row in np.flatnonzero(~there.rows).tolist():
            writer.write(row, token_hash(row), truncated_row(row))
            done.append(row)
        writer.seal({"teacher_ce": 1.25, "kl": 5e-06}, rows_expected=rows)
    return done


def assert_same_rows(path: Path, whole: Path) -> None:
    found, expected = Store(path), Store(whole)
    assert found.records(range(ROWS)) == expected.records(range(ROWS))
    found.verify()


def without_damaged(path: Path) -> dict[str, bytes]:
    return {name: data for name, data in all_bytes(path).items() if not name.startswith("damaged/")}


def test_where_nothing_is_wrong_nothing_is_touched(store: Path) -> None:
    before = all_bytes(store)
    report = repair(store)
    assert report == {
        "store": str(store),
        "shards": 3,
        "wrong": [],
        "set_aside": [],
        "records_kept": ROWS,
        "missing": 0,
        "rows_missing": [],
        "complete": True,
    }
    assert all_bytes(store) == before


@pytest.mark.parametrize("place", [3, 20, 40, 63], ids=["magic", "store id", "number", "checksum"])
def test_a_damaged_header_costs_nothing_and_the_store_has_its_bytes_again(store: Path, whole: Path, place: int) -> None:
    flip(store / "shards" / SHARDS[1], place)
    damaged = (store / "shards" / SHARDS[1]).read_bytes()
    report = repair(store)
    assert (report["missing"], report["complete"], report["records_kept"]) == (0, True, ROWS)
    assert [entry["file"] for entry in report["wrong"]] == [f"shards/{SHARDS[1]}"]
    assert without_damaged(store) == all_bytes(whole)
    assert (store / "damaged" / SHARDS[1]).read_bytes() == damaged


@pytest.mark.parametrize("place", [-1, -20, -48, -49, -60], ids=["crc", "count", "magic", "line", "line's start"])
def test_a_damaged_tail_or_index_costs_nothing(store: Path, whole: Path, place: int) -> None:
    flip(store / "shards" / SHARDS[2], place)
    assert repair(store)["complete"]
    assert without_damaged(store) == all_bytes(whole)


@pytest.mark.parametrize("file", ["index.bin", "parts/part-00000.json", "id_permutation.npy"])
@pytest.mark.parametrize("place", [5, 40, -3])
def test_every_other_file_is_made_again_of_the_rest(store: Path, whole: Path, file: str, place: int) -> None:
    flip(store / file, place)
    report = repair(store)
    assert report["complete"], report
    assert without_damaged(store) == all_bytes(whole)
    assert [entry["file"] for entry in report["wrong"]] == [file]


@pytest.mark.parametrize("file", ["index.bin", "parts/part-00000.json"])
def test_so_is_one_that_is_missing(store: Path, whole: Path, file: str) -> None:
    (store / file).unlink()
    assert repair(store)["complete"]
    assert without_damaged(store) == all_bytes(whole)


def test_without_its_manifest_s_checksum_the_store_is_sealed_with_means_over_its_own_rows(
    store: Path, whole: Path
) -> None:
    flip(store / "manifest.json", 30)
    report = repair(store)
    assert (report["complete"], report["missing"]) == (True, 0)
    assert_same_rows(store, whole)
    found = Store(store).manifest["self_test"]
    assert found["sample_rows"] == ROWS
    assert found["teacher_loss_nats"] == pytest.approx(
        -np.mean([truncated_row(row).label_logprob_N for row in range(ROWS)]), abs=2e-3
    )


def test_without_manifest_and_index_it_is_in_the_making_again_and_whole(store: Path, whole: Path) -> None:
    flip(store / "manifest.json", 30)
    flip(store / "index.bin", 30)
    report = repair(store)
    assert (report["complete"], report["missing"], report["records_kept"]) == (False, 0, ROWS)
    assert not is_complete(store)
    seal(store, rows_expected=ROWS)
    assert_same_rows(store, whole)


@pytest.mark.parametrize(
    ("damage", "also"),
    [
        (lambda path, line: flip(path, int(line["offset"]) + 8), ()),
        (lambda path, line: flip(path, int(line["offset"]) + int(line["bytes"]) // 2), ()),
        (lambda path, line: flip(path, int(line["offset"]) + int(line["bytes"]) - 1), ("header",)),
        (lambda path, line: flip(path, int(line["offset"])), ("tail",)),
    ],
    ids=["head", "streams", "end, and the header", "magic, and the tail"],
)
def test_a_damaged_record_costs_its_row_and_the_next_capture_makes_just_that(
    store: Path, whole: Path, damage: Callable[[Path, np.void], None], also: tuple[str, ...]
) -> None:
    shard, line = store / "shards" / SHARDS[1], lines(store, SHARDS[1])[1]
    damage(shard, line)
    if "header" in also:
        flip(shard, 1)
    if "tail" in also:
        flip(shard, -10)
    report = repair(store)
    assert (report["missing"], report["rows_missing"], report["complete"]) == (1, [int(line["row"])], False)
    assert report["records_kept"] == ROWS - 1
    assert go_on(store) == [int(line["row"])]
    assert_same_rows(store, whole)


def test_a_shard_that_is_cut_short_keeps_what_is_before_the_cut(store: Path, whole: Path) -> None:
    shard, footer = store / "shards" / SHARDS[0], lines(store, SHARDS[0])
    shard.write_bytes(shard.read_bytes()[: int(footer[2]["offset"]) + 100])
    report = repair(store)
    lost = footer["row"][2:].tolist()
    assert report["rows_missing"] == lost
    assert go_on(store) == lost
    assert_same_rows(store, whole)


def test_bytes_lost_or_put_in_cost_only_the_record_they_are_in(store: Path, whole: Path) -> None:
    shard, footer = store / "shards" / SHARDS[0], lines(store, SHARDS[0])
    data, at = shard.read_bytes(), int(footer[1]["offset"]) + 200
    shard.write_bytes(data[:at] + b"PDRC\x01\x01" + data[at + 60 :])
    assert repair(store)["rows_missing"] == [int(footer[1]["row"])]
    go_on(store)
    assert_same_rows(store, whole)


@pytest.mark.parametrize("shard", SHARDS)
def test_a_missing_shard_s_rows_are_captured_again(store: Path, whole: Path, shard: str) -> None:
    lost = lines(store, shard)["row"].tolist()
    (store / "shards" / shard).unlink()
    assert repair(store)["rows_missing"] == lost
    assert repair(store)["missing"] == len(lost)  # asked again, it says the same
    assert go_on(store) == lost
    assert_same_rows(store, whole)


def test_shards_under_each_other_s_name_are_put_right(store: Path, whole: Path) -> None:
    first, second = (store / "shards" / name for name in SHARDS[:2])
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    report = repair(store)
    assert (report["missing"], report["complete"]) == (0, True)
    assert_same_rows(store, whole)


@pytest.mark.parametrize("header", ["whole", "damaged"])
def test_a_shard_of_another_store_is_set_aside_and_nothing_of_it_kept(
    store: Path, whole: Path, tmp_path: Path, header: str
) -> None:
    other = tmp_path / "other"
    with StoreWriter(other, manifest={**TRUNCATED, "teacher": {"name": "x"}}, permutation=PERMUTATION) as writer:
        for row in range(4):
            writer.write(row, token_hash(row), truncated_row(row, p=0.9))
        writer.finish()
    data = bytearray((other / "shards" / SHARDS[0]).read_bytes())
    if header == "damaged":
        data[2] ^= 1
        data[20] ^= 1
    lost = lines(store, SHARDS[0])["row"].tolist()
    (store / "shards" / SHARDS[0]).write_bytes(data)
    report = repair(store)
    assert report["rows_missing"] == lost
    assert (store / "damaged" / SHARDS[0]).read_bytes() == data
    go_on(store)
    assert_same_rows(store, whole)


def test_a_header_beyond_recognition_is_believed_when_the_shard_has_the_listed_length(store: Path, whole: Path) -> None:
    shard = store / "shards" / SHARDS[0]
    shard.write_bytes(bytes(64) + shard.read_bytes()[64:])
    assert repair(store)["complete"]
    assert without_damaged(store) == all_bytes(whole)


def test_a_permutation_with_more_than_one_wrong_entry_cannot_be_mended_and_nothing_is_touched(store: Path) -> None:
    data = bytearray((store / "id_permutation.npy").read_bytes())
    data[-1], data[-9] = 1, 1
    (store / "id_permutation.npy").write_bytes(data)
    before = all_bytes(store)
    with pytest.raises(StoreError, match="no other file says which token an id stands for"):
        repair(store)
    assert all_bytes(store) == before


def test_without_manifest_and_parts_nobody_knows_what_the_rows_are(store: Path) -> None:
    flip(store / "manifest.json", 9)
    flip(store / "parts" / "part-00000.json", 9)
    with pytest.raises(StoreError, match="neither manifest\\.json nor a part of it is readable"):
        repair(store)


def test_a_partial_store_is_partial_again(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "p", manifest=TRUNCATED, permutation=PERMUTATION) as writer:
        for row in (0, 2, 4, 9):
            writer.write(row, token_hash(row), truncated_row(row))
        writer.seal({"teacher_ce": 1.0}, rows_expected=ROWS, partial=True)
    before = all_bytes(tmp_path / "p")
    flip(tmp_path / "p" / "shards" / SHARDS[0], -1)
    report = repair(tmp_path / "p")
    assert (report["missing"], report["complete"]) == (0, True)
    assert without_damaged(tmp_path / "p") == before
    flip(tmp_path / "p" / "shards" / SHARDS[0], 300)
    assert repair(tmp_path / "p")["rows_missing"] == [0]
    seal(tmp_path / "p", rows_expected=ROWS, partial=True)
    assert Store(tmp_path / "p").present().tolist() == [2, 4, 9]


def test_a_sampled_store_too(tmp_path: Path) -> None:
    path = write_store(tmp_path / "d", rows=4, facts=SAMPLED)
    before = all_bytes(path)
    flip(path / "shards" / SHARDS[0], 0)
    assert repair(path)["complete"]
    assert without_damaged(path) == before


# ---- in the making


def half_made(path: Path) -> Path:
    """Seven rows: three in a closed shard, four in one that grows, with a torn record behind them."""
    with StoreWriter(path, manifest=TRUNCATED, permutation=PERMUTATION, shard_bytes=11_000) as writer:
        for row in range(7):
            writer.write(row, token_hash(row), truncated_row(row))
    growing = path / "shards" / f"{SHARDS[1]}.tmp"
    assert growing.exists()
    with growing.open("ab") as file:
        file.write(b"PDRC torn")
    return path


def test_a_half_made_store_has_nothing_wrong_and_is_left_alone(tmp_path: Path) -> None:
    path = half_made(tmp_path / "h")
    before = all_bytes(path)
    report = repair(path)
    assert (report["wrong"], report["missing"], report["complete"]) == ([], 0, False)
    assert report["records_kept"] == 7
    assert all_bytes(path) == before


@pytest.mark.parametrize("header", [False, True])
def test_damage_in_a_growing_shard_does_not_take_the_records_behind_it(
    tmp_path: Path, whole: Path, header: bool
) -> None:
    path = half_made(tmp_path / "h")
    growing = path / "shards" / f"{SHARDS[1]}.tmp"
    flip(growing, 40 if header else 300)
    report = repair(path)
    kept = 7 if header else 6
    assert (report["records_kept"], report["complete"]) == (kept, False)
    assert not growing.exists()
    assert (path / "damaged" / growing.name).exists()
    assert len(go_on(path)) == ROWS - kept
    assert_same_rows(path, whole)


def test_damage_in_a_closed_shard_of_a_half_made_store(tmp_path: Path, whole: Path) -> None:
    path = half_made(tmp_path / "h")
    flip(path / "shards" / SHARDS[0], 300)
    report = repair(path)
    assert (report["records_kept"], report["missing"], report["complete"]) == (6, 1, False)
    assert go_on(path) == [report["rows_missing"][0], *range(7, ROWS)]
    assert_same_rows(path, whole)


def test_no_repair_while_a_writer_is_at_work(tmp_path: Path) -> None:
    with (
        StoreWriter(tmp_path / "w", manifest=TRUNCATED, permutation=PERMUTATION),
        pytest.raises(StoreError, match="writer 0 is at work on it"),
    ):
        repair(tmp_path / "w")


def test_no_store_is_no_repair(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no teacher store is here"):
        repair(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_killed_between_any_two_of_its_acts_and_run_again_it_keeps_the_same(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from predistill.store.place import LocalPlace

    acts = 0
    allowed = 0

    def counted(name: str) -> None:
        original = getattr(LocalPlace, name)

        def act(self: LocalPlace, *args: object) -> object:
            nonlocal acts
            acts += 1
            if acts > allowed:
                raise KeyboardInterrupt
            return original(self, *args)

        monkeypatch.setattr(LocalPlace, name, act)

    for name in ("put", "remove", "copy", "take_in"):
        counted(name)
    for allowed in range(40):
        path = tmp_path / f"s{allowed}"
        shutil.copytree(whole, path)
        flip(path / "shards" / SHARDS[0], 10)  # no row is lost
        line = lines(path, SHARDS[1])[0]
        flip(path / "shards" / SHARDS[1], int(line["offset"]) + 50)
        acts = 0
        try:
            repair(path)
            ended = True
        except KeyboardInterrupt:
            ended = False
        acts, kept = -1000, allowed
        report = repair(path)
        allowed = kept
        assert (report["records_kept"], report["missing"]) == (ROWS - 1, 1), allowed
        acts = -1000
        assert go_on(path) == [int(line["row"])]
        assert_same_rows(path, whole)
        if ended:
            assert allowed > 5
            return
    raise AssertionError("repair did not end in 40 acts")
