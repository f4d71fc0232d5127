"""Many workers of one capture: whoever they are and whatever becomes of them, the rows are those of one process."""

from __future__ import annotations

import random
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from predistill.errors import RecipeError
from predistill.objective import TopPK
from predistill.recipe import read_recipe
from predistill.runs import Run
from predistill.stages.capture import capture
from predistill.stages.train import train
from predistill.store import Store, is_complete
from predistill.store.place import open_place
from tests.made import recipe_content, timeless, weights
from tests.processes import Forked, Forks
from tests.s3 import S3
from tests.store.crowd import left_behind

KEPT = TopPK(p=0.95, k=100)


@pytest.fixture(scope="module")
def single(corpus: Path, lm_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """By one process."""
    out = tmp_path_factory.mktemp("single") / "store"
    return capture(lm_run.path, corpus=corpus, out=out, truncation=KEPT, threads=1)


def command(lm_run: Run, corpus: Path, out: Path | str) -> tuple[str | Path, ...]:
    return ("capture", "--teacher", lm_run.path, "--corpus", corpus, "--out", out)


def assert_the_same(out: Path | str, single: Store) -> Store:
    store, rows = Store(out), np.arange(len(single))
    assert len(store) == len(single)
    assert store.records(rows) == single.records(rows)
    assert store.manifest["self_test"] == single.manifest["self_test"]
    store.verify()
    return store


def test_workers_of_this_machine_make_the_rows_of_one(single: Store, corpus: Path, lm_run: Run, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "store"
    store = capture(
        lm_run.path,
        corpus=corpus,
        out=out,
        truncation=KEPT,
        workers=2,
        threads=1,
        on_progress=lambda *done: seen.append(done),
    )
    assert store.path == str(out)
    assert_the_same(out, single)
    assert left_behind(out) == []
    assert seen[-1] == (len(single), len(single))
    assert store.manifest["capture"] == single.manifest["capture"]


def test_processes_started_by_themselves_share_the_rows(
    single: Store, corpus: Path, lm_run: Run, forks: Forks, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    crowd = [forks.start(*command(lm_run, corpus, out), log=tmp_path / f"log{n}") for n in range(3)]
    assert [process.wait() for process in crowd] == [0, 0, 0], (tmp_path / "log0").read_text()
    assert_the_same(out, single)
    assert left_behind(out) == []


def test_a_worker_that_is_killed_costs_nothing_but_its_last_span(
    single: Store, corpus: Path, lm_run: Run, forks: Forks, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    kills = killed_at_random(forks, command(lm_run, corpus, out), out, workers=2, kills=4, folder=tmp_path)
    assert_the_same(out, single)
    assert left_behind(out) == []
    assert kills


def test_settings_that_do_not_go_with_workers_are_refused(corpus: Path, lm_run: Run, tmp_path: Path) -> None:
    settings = {"corpus": corpus, "out": tmp_path / "store", "truncation": KEPT, "workers": 2}
    with pytest.raises(RecipeError, match=r'--launcher is "rey"; did you mean "ray"\? One of local, ray\.'):
        capture(lm_run.path, launcher="rey", **settings)
    with pytest.raises(RecipeError, match="--tensor-parallel"):
        capture(lm_run.path, tensor_parallel=True, **settings)
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_ranks_of_torchrun_are_workers(single: Store, corpus: Path, lm_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "store"
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [*torchrun, "-m", "predistill", *map(str, command(lm_run, corpus, out))],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_the_same(out, single)
    assert left_behind(out) == []


def test_two_processes_capture_straight_to_an_object_store_and_training_there_is_training_here(
    single: Store, corpus: Path, lm_run: Run, forks: Forks, s3: S3, tmp_path: Path
) -> None:
    out = f"s3://bucket/{secrets.token_hex(4)}"
    crowd = [
        forks.start(
            *command(lm_run, corpus, out),
            log=tmp_path / f"log{n}",
            env=s3.environment | {"PREDISTILL_CACHE": str(tmp_path / f"machine{n}")},  # neither sees the other's locks
        )
        for n in range(2)
    ]
    assert [process.wait() for process in crowd] == [0, 0], (tmp_path / "log0").read_text()
    store = assert_the_same(out, single)
    place = open_place(out)
    assert place.names("claims") == place.names("beats") == []
    assert not place.exists("calibration.json")
    left = [path for n in range(2) for path in (tmp_path / f"machine{n}").rglob("*") if path.is_file()]
    assert left == []
    here, there = (
        train(
            read_recipe(recipe_content(corpus, Path("x")) | {"corpus": [{"path": str(corpus), "store": where}]}), out=to
        )
        for where, to in ((single.path, tmp_path / "here"), (store.path, tmp_path / "there"))
    )
    assert timeless(there) == timeless(here)
    assert weights(there) == weights(here)


@pytest.mark.slow
def test_a_worker_killed_beside_an_object_store_is_taken_over(
    single: Store, corpus: Path, lm_run: Run, forks: Forks, s3: S3, tmp_path: Path
) -> None:
    """On its own machine at once; what it had not put there yet lies in this machine's folder."""
    out = f"s3://bucket/{secrets.token_hex(4)}"
    env = s3.environment | {"PREDISTILL_CACHE": str(tmp_path / "machine")}
    victim = forks.start(*command(lm_run, corpus, out), log=tmp_path / "log", env=env)
    while not list((tmp_path / "machine").glob("writing/*/shards/*.tmp")) and not victim.ended():
        time.sleep(0.005)
    victim.kill(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    assert forks.run(*command(lm_run, corpus, out), log=tmp_path / "log", env=env) == 0, (tmp_path / "log").read_text()
    store = assert_the_same(out, single)
    assert store.manifest["totals"]["rows_twice"] == 0
    assert [path for path in (tmp_path / "machine").rglob("*") if path.is_file()] == []


def killed_at_random(
    forks: Forks,
    argv: tuple[str | Path, ...],
    out: Path,
    *,
    workers: int,
    kills: int,
    folder: Path,
    moments: random.Random | None = None,
    pause_s: float = 0.25,
) -> list[float]:
    """So many workers at all times, of whom a random one is killed again and again; when the kills happened. The last
    ones are left to finish, and all of them end well."""
    moments = moments or random.Random()
    began, done = time.monotonic(), []

    def start() -> Forked:
        return forks.start(*argv, log=folder / "log")

    crowd = [start() for _ in range(workers)]
    while len(done) < kills and not is_complete(out):
        time.sleep(moments.uniform(0.0, 2 * pause_s))
        victim = crowd.pop(moments.randrange(workers))
        victim.kill(signal.SIGKILL)
        if victim.wait() == -signal.SIGKILL:
            done.append(round(time.monotonic() - began, 3))
        crowd.append(start())
    assert [worker.wait() for worker in crowd] == [0] * workers, (folder / "log").read_text()
    return done
