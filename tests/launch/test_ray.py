"""Tasks of a real Ray on this machine."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from predistill.errors import StoreError
from predistill.launch import Job, run_many
from predistill.objective import TopPK
from predistill.runs import Run
from predistill.stages.capture import capture
from predistill.store import Store
from tests.store.crowd import left_behind

pytest.importorskip("ray", reason="needs Ray: pip install 'predistill[ray]'")

KEPT = TopPK(p=0.95, k=100)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One for all tests: it takes seconds to start."""
    import ray

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # asks for no GPU what it will do in the future, and warns
    ray.init(num_cpus=4, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()
    del os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"]


def fail(place: str) -> None:
    raise StoreError(f"{place}: this is for people to read, of {os.environ['OMP_NUM_THREADS']} threads.")


def never(*_: Any) -> None:
    return


@pytest.mark.slow
def test_what_fails_there_is_raised_here_in_the_same_words() -> None:
    waits: list[None] = []
    failed = run_many("ray", Job(fail, {"place": "stores/x"}, times=2, threads=2, on_wait=lambda: waits.append(None)))
    assert [(type(error), str(error)) for error in failed] == [
        (StoreError, "stores/x: this is for people to read, of 2 threads.")
    ] * 2
    assert waits


def test_four_workers_make_the_rows_of_one_process_though_one_is_killed(
    corpus: Path, lm_run: Run, tmp_path: Path
) -> None:
    single = capture(lm_run.path, corpus=corpus, out=tmp_path / "single", truncation=KEPT, threads=1)
    out = tmp_path / "store"
    killed: list[int] = []

    def kill_one() -> None:
        while not killed and not (out / "manifest.json").exists():
            busy = list((out / "parts").glob("part-*.lock"))
            for process in psutil.process_iter(["cmdline"]):
                held = busy and "ray::_one" in " ".join(process.info["cmdline"] or [])
                if held and any(file.path.startswith(str(out)) for file in process.open_files()):
                    process.send_signal(signal.SIGKILL)
                    killed.append(process.pid)
                    return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one)
    killer.start()
    capture(
        lm_run.path, corpus=corpus, out=out, truncation=KEPT, workers=4, launcher="ray", threads=1, on_progress=never
    )
    killer.join()
    store, rows = Store(out), np.arange(len(single))
    assert store.records(rows) == single.records(rows)
    assert store.manifest["self_test"] == single.manifest["self_test"]
    store.verify()
    assert left_behind(out) == []
    assert killed
