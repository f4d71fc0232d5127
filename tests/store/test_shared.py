"""Writers that join, leave, stop and die: the sealed store has the rows of one that was written by one, and no more."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predistill.errors import StoreError
from predistill.files import read_sealed_json
from predistill.store import Store, StoreComplete, StoreWriter, is_complete, rows_begun
from predistill.store.calibration import CALIBRATION
from predistill.store.place import LocalPlace
from predistill.store.seal import seal_store
from tests.store.crowd import (
    SELF_TEST,
    assert_sealed,
    left_behind,
    shared_writer,
    start,
    wait_for,
    work,
    write_row,
)
from tests.store.made import PERMUTATION, TRUNCATED, all_bytes, token_hash, truncated_row, write_store

ROWS = 30  # 8 spans of 4, the last shorter


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By one writer that is alone."""
    path = tmp_path_factory.mktemp("single") / "store"
    work(path, rows=ROWS)
    return path


def rows_there(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("shards/*")) // 3000


def test_one_writer_alone_makes_the_bytes_of_the_plain_writer(single: Path, tmp_path: Path) -> None:
    plain = write_store(tmp_path / "plain", rows=ROWS)
    files, others = all_bytes(single), all_bytes(plain)
    assert files.keys() == others.keys()
    assert {name for name in files if files[name] != others[name]} == {"manifest.json"}  # the self-test
    assert_sealed(single, single)
    assert left_behind(single) == []


@pytest.mark.parametrize("writers", [2, 5])
def test_several_processes_make_the_rows_of_one(single: Path, tmp_path: Path, writers: int) -> None:
    crowd = [start(tmp_path / "store", rows=ROWS, pause=0.002) for _ in range(writers)]
    for process in crowd:
        process.join()
    assert [process.exitcode for process in crowd] == [0] * writers
    store = assert_sealed(tmp_path / "store", single)
    assert store.manifest["totals"]["rows_twice"] == 0
    assert len(store.manifest["writers"]) > 1
    assert left_behind(tmp_path / "store") == []


def test_several_threads_of_one_process_make_the_rows_of_one(single: Path, tmp_path: Path) -> None:
    threads = [threading.Thread(target=work, args=(tmp_path,), kwargs={"rows": ROWS}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_sealed(tmp_path, single)
    assert left_behind(tmp_path) == []


def test_one_may_leave_early_and_one_may_come_late(single: Path, tmp_path: Path) -> None:
    work(tmp_path, rows=ROWS, spans=3)
    assert not is_complete(tmp_path)
    assert rows_begun(tmp_path, rows=ROWS, span_rows=4) == 12
    first = start(tmp_path, rows=ROWS, pause=0.01)
    wait_for(lambda: rows_begun(tmp_path, rows=ROWS, span_rows=4) >= 20)
    late = start(tmp_path, rows=ROWS, pause=0.01)
    first.join()
    late.join()
    assert (first.exitcode, late.exitcode) == (0, 0)
    store = assert_sealed(tmp_path, single)
    assert store.manifest["totals"]["rows_twice"] == 0
    assert left_behind(tmp_path) == []


def test_who_comes_after_the_seal_is_told_and_leaves_no_trace(single: Path, tmp_path: Path) -> None:
    shutil.copytree(single, tmp_path / "store")
    before = all_bytes(tmp_path / "store")
    with pytest.raises(StoreComplete):
        shared_writer(tmp_path / "store", rows=ROWS)
    assert all_bytes(tmp_path / "store") == before


def test_who_comes_while_it_is_sealed_leaves_no_trace(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sealed between its first look and its part."""
    shutil.copytree(single, tmp_path / "store")
    before = all_bytes(tmp_path / "store")
    looks = iter([False])
    exists = LocalPlace.exists
    monkeypatch.setattr(
        LocalPlace,
        "exists",
        lambda self, name: next(looks, True) if name == "manifest.json" else exists(self, name),
    )
    with pytest.raises(StoreComplete):
        shared_writer(tmp_path / "store", rows=ROWS)
    monkeypatch.undo()
    assert all_bytes(tmp_path / "store") == before


def test_the_rows_of_a_writer_that_dies_are_kept_and_the_rest_of_its_span_is_taken_over(
    single: Path, tmp_path: Path
) -> None:
    victim = start(tmp_path, rows=ROWS, pause=0.05, span_rows=16)
    wait_for(lambda: rows_there(tmp_path) >= 5)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    work(tmp_path, rows=ROWS, span_rows=16)
    store = assert_sealed(tmp_path, single)
    assert store.manifest["totals"]["rows_twice"] == 0
    assert store.manifest["writers"] == [0]  # the next one went on with its part
    assert left_behind(tmp_path) == []


def test_a_survivor_takes_over_at_once(single: Path, tmp_path: Path) -> None:
    victim = start(tmp_path, rows=ROWS, pause=0.05, span_rows=16)
    wait_for(lambda: rows_there(tmp_path) >= 3)
    survivor = start(tmp_path, rows=ROWS, pause=0.01, span_rows=16)
    wait_for((tmp_path / "parts" / "part-00001.json").exists)
    victim.kill()
    victim.join()
    survivor.join(60)
    assert survivor.exitcode == 0
    store = assert_sealed(tmp_path, single)
    assert store.manifest["writers"] == [0, 1]
    assert store.manifest["totals"]["rows_twice"] == 0
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("then", ["goes on", "is killed"])
def test_a_stopped_writer_is_taken_over_after_the_lease_and_does_no_harm_later(
    single: Path, tmp_path: Path, then: str
) -> None:
    stopped = start(tmp_path, rows=ROWS, pause=0.03, span_rows=16, lease=0.5)
    wait_for(lambda: rows_there(tmp_path) >= 3)
    assert stopped.pid is not None
    os.kill(stopped.pid, signal.SIGSTOP)
    work(tmp_path, rows=ROWS, span_rows=16, lease=0.5)
    assert_sealed(tmp_path, single)
    os.kill(stopped.pid, signal.SIGKILL if then == "is killed" else signal.SIGCONT)
    stopped.join(60)
    assert stopped.exitcode == (-signal.SIGKILL if then == "is killed" else 0)
    assert_sealed(tmp_path, single)
    if then == "goes on":
        assert left_behind(tmp_path) == []
    else:
        assert left_behind(tmp_path) == ["parts/part-00000.lock"]  # whose holder could not be asked


def test_a_shard_that_a_stopped_writer_closes_after_the_seal_does_not_stay(single: Path, tmp_path: Path) -> None:
    with shared_writer(tmp_path, rows=ROWS, span_rows=16, lease=0.0) as slow:
        spans = slow.spans()
        first = next(spans).tolist()
        write_row(slow, first[0])
        work(tmp_path, rows=ROWS, span_rows=16, lease=0.0)
        assert is_complete(tmp_path)
        for row in first[1:]:
            write_row(slow, row)
        assert list(spans) == []
    assert_sealed(tmp_path, single)
    assert left_behind(tmp_path) == []


def test_rows_of_two_writers_are_counted_once_though_both_wrote_them(single: Path, tmp_path: Path) -> None:
    with shared_writer(tmp_path, rows=ROWS, span_rows=16, lease=0.0) as slow:
        spans = slow.spans()
        first = next(spans).tolist()
        for row in first[:7]:
            write_row(slow, row)
        slow.writer.flush()  # it closed a shard, and then was thought dead
        with shared_writer(tmp_path, rows=ROWS, span_rows=16, lease=0.0) as quick:
            for span in quick.spans():
                for row in span.tolist():
                    write_row(quick, row)
                if not is_complete(tmp_path) and first:
                    for row in first[7:10]:  # both are on it
                        write_row(slow, row)
                    slow.writer.flush()
                    first = []
    store = assert_sealed(tmp_path, single)
    assert store.manifest["totals"]["rows_twice"] > 0


def test_a_writer_that_dies_before_its_first_row_is_whole_spoils_nothing(single: Path, tmp_path: Path) -> None:
    """Its shard holds a header, or not even that."""
    for cut in (0, 30, 64, 200):
        path = tmp_path / str(cut)
        work(path, rows=ROWS, spans=2)
        with shared_writer(path, rows=ROWS) as victim:
            assert victim.writer.writer == 0
        with StoreWriter(path, manifest=TRUNCATED, permutation=PERMUTATION, writer=1) as victim_part:
            victim_part.write(20, token_hash(20), truncated_row(20))
        growing = path / "shards" / "00001-000000.pds.tmp"
        growing.write_bytes(growing.read_bytes()[:cut])
        work(path, rows=ROWS)
        assert_sealed(path, single)
        assert left_behind(path) == []


def test_random_kills_among_writers_that_come_back_leave_the_rows_of_one(single: Path, tmp_path: Path) -> None:
    moments = random.Random()
    crowd: list[BaseProcess] = [start(tmp_path, rows=ROWS, pause=0.03) for _ in range(3)]
    kills = 0
    while not is_complete(tmp_path) and kills < 12:
        time.sleep(moments.uniform(0.0, 0.06))
        victim = crowd.pop(moments.randrange(len(crowd)))
        victim.kill()
        victim.join()
        kills += victim.exitcode == -signal.SIGKILL
        crowd.append(start(tmp_path, rows=ROWS, pause=0.03))
    for process in crowd:
        process.join(60)
    assert [process.exitcode for process in crowd] == [0, 0, 0]
    assert_sealed(tmp_path, single)
    assert left_behind(tmp_path) == []
    assert kills > 3


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


def dies_after(patch: pytest.MonkeyPatch, acts: int) -> None:
    """Whoever changes a local place dies instead, after so many changes."""
    left = iter(range(acts))

    def dying(act: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **settings: Any) -> Any:
            if next(left, None) is None:
                raise Killed
            return act(*args, **settings)

        return run

    for name in ("put", "remove", "create", "sweep", "take_in"):
        patch.setattr(LocalPlace, name, dying(getattr(LocalPlace, name)))


def test_a_writer_that_dies_before_any_act_of_its_seal_leaves_one_that_can_be_sealed(
    single: Path, tmp_path: Path
) -> None:
    work(tmp_path / "begun", rows=ROWS, spans=7)
    for acts in count():
        path = shutil.copytree(tmp_path / "begun", tmp_path / str(acts))
        try:
            with pytest.MonkeyPatch.context() as patch, shared_writer(path, rows=ROWS) as shared:
                for span in shared.spans():
                    for row in span.tolist():
                        write_row(shared, row)
                    dies_after(patch, acts)
        except Killed:
            if is_complete(path):  # of all that may be left there, nothing is
                assert [name for name in left_behind(path) if not name.endswith(".lock")] == []
            work(path, rows=ROWS)
            assert_sealed(path, single)
        else:
            break
    assert acts > 8


def test_sealing_takes_a_row_that_lies_there_twice_from_the_first(tmp_path: Path) -> None:
    kept = {0: [0, 1, 2, 3], 1: [2, 3, 4, 5], 2: [5, 0, 6, 7]}
    for number, rows in kept.items():
        with StoreWriter(
            tmp_path, manifest=TRUNCATED, permutation=PERMUTATION, writer=number, shard_bytes=7_000
        ) as writer:
            for row in rows:
                writer.write(row, token_hash(row), truncated_row(row))
            writer.finish()
    place = LocalPlace(tmp_path)
    seal_store(place, self_test=SELF_TEST, rows_expected=8)
    store = Store(tmp_path)
    store.verify()
    single = Store(write_store(tmp_path / "single", rows=8))
    assert store.records(np.arange(8)) == single.records(np.arange(8))
    assert store.manifest["totals"]["rows_twice"] == 4
    assert {name: store.totals[name] for name in ("rows", "positions", "entries")} == {
        name: single.totals[name] for name in ("rows", "positions", "entries")
    }
    ours, theirs = store.bytes_by_stream(), single.bytes_by_stream()
    assert sum(ours.values()) == store.totals["bytes"]
    assert {k: v for k, v in ours.items() if k != "overhead"} == {k: v for k, v in theirs.items() if k != "overhead"}
    assert ours["overhead"] > theirs["overhead"]
    first_shard_of_2 = store._at.line(2).shard
    names = [entry.name for entry in store._at.shards]
    assert names[first_shard_of_2].startswith("00000-")


def test_parts_of_two_captures_are_not_sealed_into_one(tmp_path: Path) -> None:
    for number, facts in enumerate((TRUNCATED, TRUNCATED | {"teacher": {"name": "another"}})):
        path = tmp_path / str(number)
        with StoreWriter(path, manifest=facts, permutation=PERMUTATION, writer=number) as writer:
            writer.write(number, token_hash(number), truncated_row(number))
            writer.finish()
    shutil.copytree(tmp_path / "1", tmp_path / "0", dirs_exist_ok=True)
    with pytest.raises(StoreError, match="are of two captures"):
        seal_store(LocalPlace(tmp_path / "0"), self_test={}, rows_expected=2)
    with pytest.raises(StoreError, match=r"begun with teacher.name"):
        shared_writer(tmp_path / "0", rows=2)


def test_a_partial_store_gives_what_it_has_and_names_what_it_has_not(tmp_path: Path) -> None:
    there = [1, 4, 5, 9]
    with StoreWriter(tmp_path, manifest=TRUNCATED, permutation=PERMUTATION) as writer:
        for row in there:
            writer.write(row, token_hash(row), truncated_row(row))
        with pytest.raises(StoreError, match="6 of 10 rows are missing, the first is row 0"):
            writer.seal({}, rows_expected=10)
        writer.seal({}, rows_expected=10, partial=True)
    store = Store(tmp_path)
    store.verify()
    assert (len(store), store.totals["rows"]) == (10, 4)
    np.testing.assert_array_equal(np.flatnonzero(store.has(np.arange(10))), there)
    np.testing.assert_array_equal(store.rows([5, 1]).row(0).ids_E, truncated_row(5).ids_E)
    with pytest.raises(StoreError, match=r"row 3 is not in this store, which holds 4 of 10 rows"):
        store.rows([4, 3])
    both = store.rows([3, 4], absent_ok=True)
    assert both.row(0).length_N.tolist() == [0] * 32
    np.testing.assert_array_equal(both.row(1).ids_E, truncated_row(4).ids_E)


def test_the_calibration_is_gone_when_it_is_sealed(tmp_path: Path) -> None:
    LocalPlace(tmp_path).put(CALIBRATION, b"{}")
    work(tmp_path, rows=4)
    assert left_behind(tmp_path) == []


def test_a_damaged_part_of_another_writer_is_an_error(tmp_path: Path) -> None:
    work(tmp_path, rows=ROWS, spans=2)
    part = tmp_path / "parts" / "part-00000.json"
    data = part.read_bytes()
    part.write_bytes(data.replace(b'"finished": false', b'"finished": true '))
    with pytest.raises(StoreError, match=r"part-00000.json: its checksum does not match"):
        work(tmp_path, rows=ROWS)
    part.write_bytes(data)
    shard = next((tmp_path / "shards").glob("*.pds"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(StoreError, match=rf"{shard.name}: it has no tail.*store repair"):
        work(tmp_path, rows=ROWS)


def test_unfinished_parts_say_what_they_hold(tmp_path: Path) -> None:
    work(tmp_path, rows=ROWS, spans=3)
    part = read_sealed_json(tmp_path / "parts" / "part-00000.json")
    assert part["finished"] is False
    assert sum(shard["rows"] for shard in part["shards"]) <= 12
