from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predistill.errors import StoreError
from predistill.files import read_sealed_json, write_sealed_json
from predistill.store import Store, StoreWriter, is_complete, read_permutation
from tests.store.made import (
    PERMUTATION,
    SAMPLED,
    TRUNCATED,
    all_bytes,
    sampled_row,
    token_hash,
    truncated_row,
    write_store,
)

ROWS = 24


def opened(path: Path, **changes: Any) -> StoreWriter:
    return StoreWriter(path, **({"manifest": TRUNCATED, "permutation": PERMUTATION, "shard_bytes": 20_000} | changes))


def write(writer: StoreWriter, *rows: int) -> None:
    for row in rows:
        writer.write(row, token_hash(row), truncated_row(row))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("whole") / "store", rows=ROWS)


def test_a_store_has_the_files_of_the_format_and_nothing_else(whole: Path) -> None:
    names = list(all_bytes(whole))
    shards = [name for name in names if name.startswith("shards/")]
    assert len(shards) > 2
    assert shards == [f"shards/00000-{seq:06d}.pds" for seq in range(len(shards))]
    assert [name for name in names if name not in shards] == [
        "id_permutation.npy",
        "index.bin",
        "manifest.json",
        "parts/part-00000.json",
    ]


def test_writing_again_makes_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    assert all_bytes(write_store(tmp_path / "again", rows=ROWS)) == all_bytes(whole)


def test_closing_and_going_on_after_every_row_makes_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    for row in range(ROWS):
        with opened(tmp_path) as writer:
            np.testing.assert_array_equal(writer.done_rows, np.arange(row))
            write(writer, row)
    with opened(tmp_path) as writer:
        writer.seal({"teacher_ce": 1.25, "kl": 5e-06}, rows_expected=ROWS)
    assert all_bytes(tmp_path) == all_bytes(whole)


def interrupted(whole: Path, path: Path, *, shard: int, cut: int) -> None:
    """The directory as a kill leaves it when `cut` bytes of this shard were written."""
    shutil.copytree(whole, path)
    for name in ("manifest.json", "index.bin"):
        (path / name).unlink()
    shards = sorted((path / "shards").iterdir())
    for later in shards[shard + 1 :]:
        later.unlink()
    data = shards[shard].read_bytes()
    shards[shard].unlink()
    shards[shard].with_name(shards[shard].name + ".tmp").write_bytes(data[:cut])


@pytest.mark.parametrize("part", ["stale", "none"])
def test_a_shard_cut_anywhere_is_gone_on_with_to_the_same_bytes(whole: Path, tmp_path: Path, part: str) -> None:
    """Also just before the rename of a full shard, and with a part file that never learnt of any shard."""
    sizes = [file.stat().st_size for file in sorted((whole / "shards").iterdir())]
    rng = random.Random(part)
    for n in range(8):
        shard = rng.randrange(len(sizes))
        cut = rng.choice([0, 3, 64, sizes[shard] - 1, sizes[shard], *(rng.randrange(sizes[shard]) for _ in range(5))])
        path = tmp_path / str(n)
        interrupted(whole, path, shard=shard, cut=cut)
        if part == "none":
            (path / "parts" / "part-00000.json").unlink()
        else:
            write_sealed_without_shards(path)
        assert not is_complete(path)
        assert all_bytes(write_store(path, rows=ROWS)) == all_bytes(whole), (shard, cut)


def write_sealed_without_shards(path: Path) -> None:
    part = path / "parts" / "part-00000.json"
    write_sealed_json(part, read_sealed_json(part) | {"shards": [], "finished": False})


@pytest.mark.parametrize("lost", [["manifest.json"], ["manifest.json", "index.bin"]])
def test_a_kill_during_sealing_is_gone_on_with_to_the_same_bytes(whole: Path, tmp_path: Path, lost: list[str]) -> None:
    shutil.copytree(whole, tmp_path / "s")
    for name in lost:
        (tmp_path / "s" / name).unlink()
    assert all_bytes(write_store(tmp_path / "s", rows=ROWS)) == all_bytes(whole)


def test_a_bit_flipped_in_a_shard_in_the_making_costs_rows_to_capture_again_and_never_a_wrong_one(
    whole: Path, tmp_path: Path
) -> None:
    interrupted(whole, tmp_path / "s", shard=1, cut=15_000)
    growing = tmp_path / "s" / "shards" / "00000-000001.pds.tmp"
    data = bytearray(growing.read_bytes())
    data[9_000] ^= 4
    growing.write_bytes(data)
    assert all_bytes(write_store(tmp_path / "s", rows=ROWS)) == all_bytes(whole)


def test_a_sealed_shard_that_was_damaged_is_an_error_when_going_on(whole: Path, tmp_path: Path) -> None:
    interrupted(whole, tmp_path / "s", shard=1, cut=15_000)
    shard = tmp_path / "s" / "shards" / "00000-000000.pds"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"00000-000000.pds: it has no tail"):
        opened(tmp_path / "s")


WRITE_SLOWLY = """
import sys, time
from tests.store.made import PERMUTATION, TRUNCATED, token_hash, truncated_row
from predistill.store import StoreWriter
rows, path = int(sys.argv[1]), sys.argv[2]
made = {row: truncated_row(row) for row in range(rows)}
with StoreWriter(path, manifest=TRUNCATED, permutation=PERMUTATION, shard_bytes=20_000) as writer:
    for row in range(rows):
        if row not in writer:
            writer.write(row, token_hash(row), made[row])
            print(row, flush=True)
            time.sleep(0.004)
    writer.seal({"teacher_ce": 1.25, "kl": 5e-06}, rows_expected=rows)
"""


def test_kill_9_at_any_moment_loses_no_written_row_and_the_finished_store_has_the_same_bytes(
    whole: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", WRITE_SLOWLY, str(ROWS), str(tmp_path)]
    root = str(Path(__file__).parents[2])
    env = os.environ | {"PYTHONPATH": os.pathsep.join([root, str(Path(root) / "src")])}
    rng = random.Random(5)
    written: set[int] = set()
    for _ in range(5):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, env=env)
        assert child.stdout is not None
        first = child.stdout.readline()  # it has begun to write
        time.sleep(rng.uniform(0.0, 0.02))
        child.send_signal(signal.SIGKILL)
        written |= {int(line) for line in [first, *child.stdout.read().splitlines()]}
        child.stdout.close()
        child.wait()
        with opened(tmp_path) as writer:
            assert written <= set(writer.done_rows.tolist())
            assert len(writer.done_rows) < ROWS
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    assert all_bytes(tmp_path) == all_bytes(whole)


def test_other_facts_than_the_half_made_stores_are_refused_with_the_one_that_differs(tmp_path: Path) -> None:
    with opened(tmp_path) as writer:
        write(writer, 0)
    other = TRUNCATED | {"truncation": {"kind": "top_p_k", "p": 0.9, "k": 100}}
    with pytest.raises(StoreError, match=r"begun with truncation.p = 0.95, now 0.9"):
        opened(tmp_path, manifest=other)
    with pytest.raises(StoreError, match=r"begun with permutation.sha256 = "):
        opened(tmp_path, permutation=PERMUTATION[::-1])
    with opened(tmp_path) as writer:
        assert writer.done_rows.tolist() == [0]
    np.testing.assert_array_equal(read_permutation(tmp_path), PERMUTATION)


def test_a_store_is_not_sealed_before_every_row_is_there(tmp_path: Path) -> None:
    with opened(tmp_path) as writer:
        write(writer, 0, 1, 3)
        with pytest.raises(StoreError, match="1 of 4 rows are missing, the first is row 2"):
            writer.seal({}, rows_expected=4)
        with pytest.raises(StoreError, match="3 of 6 rows are missing, the first is row 2"):
            writer.seal({}, rows_expected=6)
        write(writer, 2)
        with pytest.raises(StoreError, match="holds row 3 of 3 rows"):
            writer.seal({}, rows_expected=3)
        assert not is_complete(tmp_path)


def test_a_row_is_written_once(tmp_path: Path) -> None:
    with opened(tmp_path) as writer:
        write(writer, 5)
        with pytest.raises(StoreError, match="row 5 is already there"):
            write(writer, 5)
        assert 5 in writer
        assert 4 not in writer


def test_a_second_process_cannot_write_the_same_part(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(StoreError, match="another process is writing"):
        opened(tmp_path)
    opened(tmp_path).close()


def test_a_complete_store_is_not_written_to(whole: Path) -> None:
    before = all_bytes(whole)
    with pytest.raises(StoreError, match="this store is complete"):
        opened(whole)
    assert all_bytes(whole) == before


def test_rows_of_another_length_or_with_other_streams_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as writer:
        write(writer, 0)
        with pytest.raises(StoreError, match="row 1 has 16 positions"):
            writer.write(1, 1, truncated_row(1, positions=16))
        with pytest.raises(StoreError, match="row 1 has 32 positions and streams"):
            writer.write(1, 1, truncated_row(1, extras=False))
        write(writer, 1)


def test_targets_that_cannot_be_stored_name_the_row_and_leave_the_store_as_it_was(whole: Path, tmp_path: Path) -> None:
    with opened(tmp_path) as writer:
        write(writer, *range(5))
        bad = truncated_row(5)
        bad.logprob_E[3] = np.nan
        with pytest.raises(StoreError, match="row 5 cannot be stored: logprob_E holds a NaN"):
            writer.write(5, 1, bad)
        write(writer, *range(5, ROWS))
        writer.seal({"teacher_ce": 1.25, "kl": 5e-06}, rows_expected=ROWS)
    assert all_bytes(tmp_path) == all_bytes(whole)


def test_rows_in_any_order_and_sampled_rows_make_a_store(tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(ROWS)
    store = Store(write_store(tmp_path, rows=ROWS, facts=SAMPLED, order=order))
    assert store.manifest["kind"] == "sampled"
    found = store.rows(np.arange(ROWS))
    for row in range(ROWS):
        np.testing.assert_array_equal(found.row(row).length_N, sampled_row(row).length_N)
    store.verify()
