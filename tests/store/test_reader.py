from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predistill.errors import StoreError
from predistill.files import read_sealed_json, write_sealed_json
from predistill.store import Store, StoreWriter, finish
from predistill.store import record as frame
from predistill.store.records import Records
from tests.store.made import PERMUTATION, SAMPLED, TRUNCATED, all_bytes, token_hash, truncated_row, write_store

ROWS = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("made") / "store", rows=ROWS)


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def flip(path: Path, bit: int) -> None:
    with path.open("r+b", buffering=0) as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def read_everything(path: Path) -> None:
    store = Store(path)
    store.rows(np.arange(len(store)))
    store.verify()


def test_rows_come_in_the_asked_order_with_repeats(made: Path) -> None:
    asked = [7, 3, 7, 23, 0]
    hashes = np.array([token_hash(row) for row in asked], np.uint64)
    found = Store(made).rows(np.array(asked), hashes)
    assert found.row_ids.tolist() == asked
    for i, row in enumerate(asked):
        np.testing.assert_array_equal(found.row(i).ids_E, truncated_row(row).ids_E)
        np.testing.assert_array_equal(found.row(i).length_N, truncated_row(row).length_N)
        assert np.abs(found.row(i).logprob_E - truncated_row(row).logprob_E).max() <= 1 / 64 + 1 / 512


def test_a_wrong_token_hash_names_the_row_and_the_shard(made: Path) -> None:
    hashes = np.array([token_hash(3), token_hash(7) ^ 1], np.uint64)
    with pytest.raises(StoreError, match=r"row 7 \(shard 00000-00000\d.pds\) was made from other tokens") as error:
        Store(made).rows([3, 7], hashes)
    assert f"hash {token_hash(7):016x} against {token_hash(7) ^ 1:016x}" in str(error.value)


@pytest.mark.parametrize("row", [-1, ROWS])
def test_a_row_outside_the_store_is_an_error(made: Path, row: int) -> None:
    with pytest.raises(StoreError, match="it holds rows 0 to 23"):
        Store(made).rows([0, row])


def test_totals_and_bytes_by_stream_are_those_of_the_files(made: Path) -> None:
    store = Store(made)
    found = store.rows(np.arange(ROWS))
    files = all_bytes(made)
    size = sum(len(data) for name, data in files.items() if name.startswith("shards/")) + len(files["index.bin"])
    assert store.totals == {"rows": ROWS, "positions": ROWS * 32, "entries": len(found.ids_E), "bytes": size}
    by_stream = store.bytes_by_stream()
    assert sum(by_stream.values()) == size
    assert set(by_stream) == {"lengths", "ids", "logprobs", "rest", "label", "entropy", "std", "local", "overhead"}
    assert by_stream.pop("local") == 0  # rows of few entries
    assert min(by_stream.values()) > 0


def test_the_manifest_holds_the_facts_and_the_self_test(made: Path) -> None:
    manifest = Store(made).manifest
    assert {name: manifest[name] for name in TRUNCATED} == TRUNCATED
    assert manifest["self_test"] == {"teacher_ce": 1.25, "kl": 5e-06}
    assert manifest["alignment"] == "entry t predicts token t+1"
    assert manifest["row_len"] == 32


def test_a_bit_flipped_anywhere_in_a_store_is_an_error(tmp_path: Path) -> None:
    """Every file, at least 60 flips in each and every bit of the first and last 64 bytes of one shard."""
    copy = write_store(tmp_path, rows=6, shard_bytes=6_000)
    rng = np.random.default_rng(9)
    flips = 0
    for name, data in all_bytes(copy).items():
        bits = rng.choice(8 * len(data), 60, replace=False).tolist()
        if name.endswith("000000.pds"):
            bits += [*range(64 * 8), *range(8 * (len(data) - 64), 8 * len(data))]
        for bit in bits:
            flip(copy / name, bit)
            with pytest.raises(StoreError):
                read_everything(copy)
            flip(copy / name, bit)
            flips += 1
    assert flips > 1300
    read_everything(copy)


def test_rows_alone_never_give_anything_but_what_was_written_after_a_flip(copy: Path) -> None:
    """Without verify(): an error, or the very arrays (the flip was in a part that these rows do not use)."""
    expected = Store(copy).rows(np.arange(ROWS))
    rng = np.random.default_rng(10)
    errors = 0
    for name, data in all_bytes(copy).items():
        for bit in rng.choice(8 * len(data), 40, replace=False).tolist():
            flip(copy / name, bit)
            try:
                found = Store(copy).rows(np.arange(ROWS))
            except StoreError:
                errors += 1
            else:
                assert name.startswith(("parts/", "shards/"))
                for field in ("length_N", "ids_E", "logprob_E", "log_rest_N", "entropy_N"):
                    np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
            flip(copy / name, bit)
    assert errors > 200


@pytest.mark.parametrize("name", ["manifest.json", "index.bin", "id_permutation.npy", "shards/00000-000001.pds"])
def test_a_file_that_is_cut_short_longer_or_missing_is_an_error(copy: Path, name: str) -> None:
    data = (copy / name).read_bytes()
    for changed in (data[:-1], data[: len(data) // 2], b"", data + b"\x00"):
        (copy / name).write_bytes(changed)
        with pytest.raises(StoreError):
            read_everything(copy)
    (copy / name).unlink()
    with pytest.raises(StoreError):
        read_everything(copy)


def test_two_shards_swapped_are_an_error(copy: Path) -> None:
    first, second = sorted((copy / "shards").iterdir())[:2]
    first.rename(copy / "held")
    second.rename(first)
    (copy / "held").rename(second)
    with pytest.raises(StoreError, match="under another name"):
        Store(copy).rows([0])


def test_a_shard_of_another_store_is_an_error(copy: Path, tmp_path: Path) -> None:
    facts = TRUNCATED | {"teacher": {"name": "another"}}
    other = write_store(tmp_path / "other", rows=ROWS, facts=facts)
    shutil.copy(other / "shards" / "00000-000000.pds", copy / "shards")
    with pytest.raises(StoreError, match="belongs to another store"):
        Store(copy).rows([0])


def test_a_shard_of_a_store_with_the_same_facts_and_other_rows_is_an_error(copy: Path, tmp_path: Path) -> None:
    other = write_store(tmp_path / "other", rows=ROWS, order=np.arange(ROWS)[::-1])
    shutil.copy(other / "shards" / "00000-000000.pds", copy / "shards")
    with pytest.raises(StoreError, match="not the shard that was sealed into this store"):
        Store(copy).rows([0])


def test_an_index_or_a_permutation_of_another_store_is_an_error(copy: Path, tmp_path: Path) -> None:
    other = write_store(tmp_path / "other", rows=ROWS, facts=SAMPLED)
    shutil.copy(other / "index.bin", copy)
    with pytest.raises(StoreError, match=r"index.bin: it belongs to another store"):
        Store(copy)


def test_another_major_version_is_an_error_and_a_later_minor_one_is_read(copy: Path) -> None:
    manifest = read_sealed_json(copy / "manifest.json")
    write_sealed_json(copy / "manifest.json", manifest | {"version": [2, 5]})
    assert len(Store(copy).rows([0]).row_ids) == 1
    write_sealed_json(copy / "manifest.json", manifest | {"version": [1, 0]})
    with pytest.raises(StoreError, match="format version 1, this predistill reads 2"):
        Store(copy)


def test_a_directory_without_a_whole_store_says_what_it_is(copy: Path, tmp_path: Path) -> None:
    (copy / "manifest.json").unlink()
    with pytest.raises(StoreError, match="not complete; run its capture again"):
        Store(copy)
    with pytest.raises(StoreError, match="no teacher store is here"):
        Store(tmp_path / "nowhere")


def test_many_threads_read_what_one_reads_though_shards_are_opened_and_dropped(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("predistill.store.place.LocalPlace.many_open", 1)
    store = Store(made)
    expected = [store.rows([row]).logprob_E for row in range(ROWS)]
    wrong: list[object] = []

    def read(seed: int) -> None:
        for row in np.random.default_rng(seed).integers(0, ROWS, 150).tolist():
            try:
                if not np.array_equal(store.rows([row]).logprob_E, expected[row]):
                    wrong.append(row)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    store.close()
    np.testing.assert_array_equal(store.rows([3]).logprob_E, expected[3])


def test_verify_tells_how_far_it_is(made: Path) -> None:
    steps: list[tuple[int, int]] = []
    Store(made).verify(lambda done, total: steps.append((done, total)))
    assert steps == [(i + 1, len(steps)) for i in range(len(steps))]
    assert len(steps) > 2


def test_a_column_is_the_rows_own_without_their_ids(made: Path, copy: Path) -> None:
    store, asked = Store(made), [7, 3, 7, 23]
    for field in ("label_logprob_N", "entropy_N", "logit_std_N"):
        np.testing.assert_array_equal(store.column(asked, field), getattr(store.rows(asked), field))
    with pytest.raises(StoreError, match="it holds no normaliser_N; its streams are lengths, ids"):
        store.column(asked, "normaliser_N")
    flip(copy / "shards" / "00000-000000.pds", 8 * 600)  # in another stream of some row
    with pytest.raises(StoreError, match="damaged"):
        Store(copy).column(np.arange(ROWS), "label_logprob_N")


def test_raw_rows_are_the_integers_that_finish_to_the_rows(made: Path) -> None:
    store, asked = Store(made), [7, 3, 7, 23]
    raw = store.raw_rows(asked, fields=["entropy_N"])
    assert raw.row_ids.tolist() == asked
    assert raw.label_logprob_N is None
    for scaled in (True, False):
        found = finish(raw, id_of_rank_V=store.permutation, grids=store.grids, scaled=scaled)
        expected = store.rows(asked, fields=["entropy_N"], scaled=scaled)
        for field in ("length_N", "ids_E", "logprob_E", "log_rest_N", "entropy_N"):
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))


@pytest.mark.parametrize(("facts", "most"), [(TRUNCATED, 100), (SAMPLED, 50)], ids=["truncated", "sampled"])
def test_a_record_that_says_it_has_more_entries_than_there_can_be_is_an_error(
    facts: dict[str, Any], most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checksums are right: a header alone must not decide what is allocated."""
    store = Store(write_store(tmp_path / "store", rows=4, facts=facts))
    data = store._at.fetch([store._at.line(2)])[0]
    record = frame.parse(data)
    streams = [(s.id, s.codec, s.dtype, s.values, data[s.start : s.start + s.bytes]) for s in record.streams]
    for entries, words in (
        (32 * most + 1, f"entries, and {most} a position are the most"),
        (32 * most, "its lengths sum to|values, expected"),
    ):
        huge = frame.pack(
            kind=record.kind, row_id=2, token_hash=record.token_hash, positions=32, entries=entries, streams=streams
        )
        monkeypatch.setattr(Records, "fetch", lambda *_, huge=huge: [huge])
        with pytest.raises(StoreError, match=words):
            store.rows([2])


def test_rows_that_are_not_there_have_no_entries_where_that_is_allowed(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, manifest=TRUNCATED, permutation=PERMUTATION) as writer:
        for row in (1, 4):
            writer.write(row, token_hash(row), truncated_row(row))
        writer.seal({}, rows_expected=6, partial=True)
    store = Store(tmp_path)
    found = store.rows([1, 2, 4, 0], absent_ok=True)
    assert found.row_ids.tolist() == [1, 2, 4, 0]
    for i, row in enumerate([1, 4]):
        for field in ("ids_E", "logprob_E", "log_rest_N", "entropy_N"):
            np.testing.assert_array_equal(getattr(found.row(2 * i), field), getattr(store.rows([row]), field))
    nothing = found.row(1)
    assert not nothing.length_N.any()
    assert nothing.log_rest_N is not None
    assert not nothing.log_rest_N.any()
    assert not store.rows([2, 0], absent_ok=True).length_N.any()
    with pytest.raises(StoreError, match="row 2 is not in this store"):
        store.rows([1, 2])
