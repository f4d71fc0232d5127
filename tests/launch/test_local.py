from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from predistill.errors import RecipeError, RunError, StoreError
from predistill.launch import Job, run_many


def note(folder: Path, **_settings: Any) -> None:
    name = f"{os.environ['LOCAL_RANK']} {os.environ['OMP_NUM_THREADS']}"
    (folder / name).write_text(str(os.getpid()))


def fail(folder: Path) -> None:
    note(folder)
    match os.environ["LOCAL_RANK"]:
        case "0":
            raise StoreError("stores/x: this is for people to read.")
        case "1":
            os.kill(os.getpid(), signal.SIGKILL)
        case "2":
            sys.exit(5)


def wait_long(folder: Path) -> None:
    note(folder)
    time.sleep(100)


def never() -> None:
    return


def test_so_many_processes_do_the_work_each_on_its_device_with_its_threads(tmp_path: Path) -> None:
    waits: list[float] = []
    settings = {"folder": tmp_path, "more": [1, 2]}
    began = time.monotonic()
    failed = run_many(
        "local", Job(note, settings, times=3, threads=2, on_wait=lambda: waits.append(time.monotonic() - began))
    )
    assert failed == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0 2", "1 2", "2 2"]
    assert len({path.read_text() for path in tmp_path.iterdir()}) == 3
    assert waits


def test_those_that_fail_say_so_and_the_others_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    failed = run_many("local", Job(fail, {"folder": tmp_path}, times=4, threads=1, on_wait=never))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0 1", "1 1", "2 1", "3 1"]
    people, killed, bug = failed
    assert isinstance(people, StoreError)
    assert str(people) == "stores/x: this is for people to read."
    assert isinstance(killed, RunError)
    assert "was ended by SIGKILL. Run the same command again" in str(killed)
    assert isinstance(bug, RuntimeError)
    assert "exit code 5" in str(bug)
    assert capfd.readouterr().err == ""


def test_a_stop_here_ends_them_all(tmp_path: Path) -> None:
    def interrupt() -> None:
        if len(list(tmp_path.iterdir())) == 2:
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_many("local", Job(wait_long, {"folder": tmp_path}, times=2, threads=1, on_wait=interrupt))
    assert time.monotonic() - began < 60
    for path in tmp_path.iterdir():
        assert not psutil.pid_exists(int(path.read_text() or "1" * 9))


SCRIPT = """
from pathlib import Path
from predistill.launch import Job, run_many
from tests.launch.test_local import never, wait_long
if __name__ == "__main__":
    run_many("local", Job(wait_long, {"folder": Path("FOLDER")}, times=2, threads=1, on_wait=never))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launching_process_ends_them_all(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "out").mkdir()
    script = tmp_path / "script.py"
    handler = "import signal\nsignal.signal(signal.SIGTERM, signal.default_int_handler)\n"  # as cli.main does
    script.write_text(handler + SCRIPT.replace("FOLDER", str(tmp_path / "out")))
    root = str(Path(__file__).parents[2])
    env = os.environ | {"PYTHONPATH": os.pathsep.join([root, str(Path(root) / "src")])}
    process = subprocess.Popen([sys.executable, str(script)], env=env, stderr=subprocess.DEVNULL)
    while len(pids := [path.read_text() for path in (tmp_path / "out").iterdir()]) < 2 or "" in pids:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(number)
    process.wait(60)
    assert not [pid for pid in map(int, pids) if psutil.pid_exists(pid)]


def test_an_unknown_launcher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r'--launcher is "locla"; did you mean "local"\? One of local, ray\.'):
        run_many("locla", Job(note, {"folder": tmp_path}, times=1, threads=1, on_wait=never))
