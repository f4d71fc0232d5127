"""Writers of one store in an object store, each as if on a machine of its own: they see each other's claims and beats,
and no locks."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from predistill.store.place import open_place
from tests.store.crowd import assert_sealed, wait_for, work

ROWS = 16
LEASE = 1.5
WORK = """
import sys
from tests.store.crowd import work
url, rows, pause, lease = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
work(url, rows=rows, pause=pause, lease=lease)
"""


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "store"
    work(path, rows=ROWS)
    return path


def machine(url: str, folder: Path, *, pause: float, lease: float = LEASE) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join([root, str(Path(root) / "src")])
    env = os.environ | {"PYTHONPATH": paths, "PREDISTILL_CACHE": str(folder)}
    return subprocess.Popen([sys.executable, "-c", WORK, url, str(ROWS), str(pause), str(lease)], env=env)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.usefixtures("s3")
def test_machines_share_the_rows_and_leave_nothing(single: Path, tmp_path: Path) -> None:
    url = f"s3://bucket/{secrets.token_hex(4)}"
    crowd = [machine(url, tmp_path / str(number), pause=0.05, lease=60.0) for number in range(3)]
    assert [process.wait(60) for process in crowd] == [0, 0, 0]
    store = assert_sealed(url, single)
    assert store.manifest["totals"]["rows_twice"] == 0
    assert open_place(url).names("claims") == open_place(url).names("beats") == []
    assert files(tmp_path) == []


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_machine_that_falls_silent_is_taken_over_after_the_lease(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    url = f"s3://bucket/{secrets.token_hex(4)}"
    monkeypatch.setenv("PREDISTILL_CACHE", str(tmp_path / "survivor"))
    victim = machine(url, tmp_path / "victim", pause=0.3)
    place = open_place(url)
    wait_for(lambda: len(place.names("claims")) > 1 and bool(place.names("beats")))
    victim.send_signal(how)
    began = time.monotonic()
    work(url, rows=ROWS, lease=LEASE)
    assert time.monotonic() - began > LEASE * 0.9
    assert_sealed(url, single)
    if how == signal.SIGSTOP:
        victim.send_signal(signal.SIGCONT)
    assert victim.wait(60) == (0 if how == signal.SIGSTOP else -signal.SIGKILL)
    assert_sealed(url, single)
    assert place.names("claims") == place.names("beats") == []
    assert files(tmp_path / "survivor" / "writing") == []
    if how == signal.SIGSTOP:
        assert files(tmp_path / "victim" / "writing") == []
