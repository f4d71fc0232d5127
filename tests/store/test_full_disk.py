"""A disk that is full in the middle: an error that says so, nothing half done, and going on when there is room."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predistill.errors import StoreError
from predistill.objective import TopPK
from predistill.runs import Run
from predistill.stages.capture import capture
from predistill.store import Store, StoreWriter, is_complete
from predistill.store.place import LocalPlace
from tests.processes import Forks
from tests.store.crowd import assert_sealed, left_behind, shared_writer, work, write_row
from tests.store.made import PERMUTATION, TRUNCATED, token_hash, truncated_row

ROWS = 14
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "store"
    work(path, rows=ROWS)
    return path


class Disk:
    """Room for so many more writes; the one after is written in part, and all that follow fail."""

    def __init__(self, writes: int) -> None:
        self.left, self.refused = writes, ""

    def full(self) -> bool:
        self.left -= 1
        return self.left < 0


def patched(patch: pytest.MonkeyPatch, disk: Disk) -> None:
    pwrite, write = os.pwrite, LocalPlace._write

    def torn_pwrite(fd: int, data: bytes, offset: int) -> int:
        if disk.full():
            if disk.left < -1:
                raise FULL
            disk.refused = "shard"
            return pwrite(fd, data[: len(data) // 2], offset)  # a short write, and the next fails
        return pwrite(fd, data, offset)

    def torn_write(self: LocalPlace, name: str, data: bytes, become: Callable[..., Any], *, durable: bool) -> None:
        def refuse(_from: Path, _to: Path) -> None:
            raise FULL

        if disk.full():
            disk.refused = disk.refused or name
            write(self, name, data[: len(data) // 2], refuse, durable=durable)
        write(self, name, data, become, durable=durable)

    patch.setattr(os, "pwrite", torn_pwrite)
    patch.setattr(LocalPlace, "_write", torn_write)


def test_full_at_any_write_it_says_so_and_goes_on_when_there_is_room(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = set()
    for writes in range(100):
        out, disk = tmp_path / str(writes), Disk(writes)
        with monkeypatch.context() as patch:
            patched(patch, disk)
            try:
                work(out, rows=ROWS)
            except StoreError as error:
                said = str(error)
            else:
                break
        assert said.startswith(str(out))
        assert "No space left on device" in said
        assert "What was written before is whole: mend that" in said
        assert "run the same command again to go on" in said
        assert not is_complete(out)
        refused.add(disk.refused.split("/")[0])
        work(out, rows=ROWS)
        assert_sealed(out, single)
        assert left_behind(out) == []
    assert refused == {"id_permutation.npy", "parts", "claims", "shard", "index.bin", "manifest.json"}


def test_the_same_writer_goes_on_after_a_record_that_found_no_room(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a record lies there, longer than all that follows it."""
    with shared_writer(tmp_path, rows=ROWS, shard_bytes=1 << 20) as shared:
        spans = shared.spans()
        for row in next(spans).tolist():
            write_row(shared, row)
        large = truncated_row(4, positions=32, k=1024, p=1.0)
        with monkeypatch.context() as patch:
            patched(patch, Disk(0))
            with pytest.raises(StoreError, match=r"row 4 could not be written: No space left on device"):
                shared.append(shared.writer.packed(4, token_hash(4), large))
        shared.writer.flush()
        for span in spans:
            for row in span.tolist():
                write_row(shared, row)
    assert_sealed(tmp_path, single)


def test_the_plain_writer_says_what_it_was_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    for writes in range(100):
        with monkeypatch.context() as patch:
            patched(patch, Disk(writes))
            try:
                with StoreWriter(
                    tmp_path / str(writes), manifest=TRUNCATED, permutation=PERMUTATION, shard_bytes=6_000
                ) as writer:
                    for row in range(3):
                        writer.write(row, token_hash(row), truncated_row(row))
                    writer.add_cost("predistill capture", {"seconds": 1.0})
                    writer.seal({}, rows_expected=3)
                break
            except StoreError as error:
                said.append(str(error).split(": ")[1])
    assert list(dict.fromkeys(said)) == [
        "the store could not be written",
        "row 0 could not be written",
        "row 1 could not be written",
        "row 2 could not be written",
        "its cost could not be written",
        "the last shard could not be written",
        "the part could not be written",
        "the manifest could not be written",
    ]


# ---- a real disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """4 MB of memory as a file system."""
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"a file system of 4 MB cannot be mounted here ({done.stderr.strip()}): needs root")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.slow
def test_a_capture_onto_a_real_full_disk_exits_2_and_goes_on_when_there_is_room(
    corpus: Path, lm_run: Run, forks: Forks, small_disk: Path, tmp_path: Path
) -> None:
    single = capture(lm_run.path, corpus=corpus, out=tmp_path / "single", truncation=TopPK(p=0.95, k=100), threads=1)
    out, filler = small_disk / "store", small_disk / "filler"
    argv = ("capture", "--teacher", lm_run.path, "--corpus", corpus, "--out", out, "--threads", "1")
    refused = 0
    for pages in (0, 4, 12, 200):  # of 4 KiB, that are left
        room = os.statvfs(small_disk)
        filler.write_bytes(b"x" * max(0, (room.f_bavail - pages) * room.f_frsize))
        code = forks.run(*argv, log=tmp_path / f"log{pages}")
        said = (tmp_path / f"log{pages}").read_text()
        filler.unlink()
        if code == 0:
            break
        assert code == 2, said
        assert "Traceback" not in said
        assert "No space left on device" in said
        assert "run the same command again to go on" in said.replace("\n", " ")
        refused += 1
    assert refused >= 3
    assert forks.run(*argv, log=tmp_path / "log") == 0, (tmp_path / "log").read_text()
    store, rows = Store(out), np.arange(len(single))
    store.verify()
    assert store.records(rows) == single.records(rows)
    assert left_behind(out) == []
