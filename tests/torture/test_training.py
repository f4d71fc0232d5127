"""Thirty kills -9 at random moments of training, by one process and by two; every file of a checkpoint, damaged.

A checkpoint every third step, so that many of the kills fall into a save: a folder step-*.tmp left behind tells. The
record goes to benchmarks/results/torture.json.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from predistill.recipe import read_recipe
from predistill.runs import Run
from predistill.stages.train import train
from tests.made import BATCH_ROWS, ROW_LEN, recipe_content, timeless, weights
from tests.processes import TORCHRUN, Forks, kill_then_finish, lines_of, torchrun
from tests.torture.records import SEED, record

pytestmark = pytest.mark.slow

KILLS, RUNS, ATTEMPTS = 30, 3, 8
STEPS = 200
RESTARTS = 50  # of torchrun: more than there are kills
PATIENCE_SECONDS = 180.0


@pytest.fixture
def recipe(corpus: Path, store: Path, tmp_path: Path) -> Path:
    content = recipe_content(corpus, store, tokens=STEPS * BATCH_ROWS * ROW_LEN, evaluate_every=20, checkpoint_every=3)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def findings(run: Run) -> list[dict[str, Any]]:
    """What the watch found, but for what a clock told it."""
    lines = map(json.loads, (run.path / "findings.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["kind"] != "stall"]


def outcomes(killed: Run, whole: Run) -> dict[str, bool]:
    steps = [line["step"] for line in killed.metrics() if line["kind"] == "step"]
    return {
        "every step once": steps == list(range(1, STEPS + 1)),
        "metrics equal line for line": timeless(killed) == timeless(whole),
        "weights equal to the bit": weights(killed) == weights(whole),
        "findings equal": findings(killed) == findings(whole),
    }


def half_saved(out: Path) -> set[str]:
    """The checkpoints that were being saved; one may lie there over several kills, and counts once."""
    return {path.name for path in (out / "checkpoints").glob("step-*.tmp")}


def tortured(what: str, attempt: Callable[[int], dict[str, Any]]) -> None:
    """Runs until enough were killed; every one of them must come out right."""
    attempts: list[dict[str, Any]] = []
    while len(attempts) < ATTEMPTS and sum(len(entry["kills"]) for entry in attempts) < KILLS:
        attempts.append(attempt(len(attempts)))
    killed = sum(len(entry["kills"]) for entry in attempts)
    in_a_save = sum(entry["during_a_save"] for entry in attempts)
    entry = {"kills_wanted": KILLS, "kills": killed, "during_a_save": in_a_save, "steps": STEPS}
    record(what, {**entry, "unit of progress": "lines of metrics.jsonl", "attempts": attempts})
    assert all(all(entry["outcomes"].values()) for entry in attempts), attempts
    assert killed >= KILLS, "too few runs were killed before they ended"
    assert in_a_save > 0, "no kill fell into a save"


def test_one_process_killed_thirty_times_ends_as_if_never_killed(recipe: Path, forks: Forks, tmp_path: Path) -> None:
    whole, moments = train(read_recipe(recipe), out=tmp_path / "whole"), random.Random(SEED)

    def attempt(number: int) -> dict[str, Any]:
        out, saves = tmp_path / f"run{number}", set[str]()

        kills = kill_then_finish(
            forks,
            ("train", recipe, "--out", out),
            log=tmp_path / "log",
            progress=lambda: lines_of(out / "metrics.jsonl"),
            total=len(whole.metrics()),
            times=KILLS // RUNS,
            moments=moments,
            killed=lambda: saves.update(half_saved(out)),
        )
        found = outcomes(Run(out), whole)
        return {"kills": [asdict(kill) for kill in kills], "during_a_save": len(saves), "outcomes": found}

    tortured("training", attempt)


def test_two_processes_killed_thirty_times_end_as_if_never_killed(recipe: Path, tmp_path: Path) -> None:
    process = torchrun(2, "-m", "predistill", "train", recipe, "--out", tmp_path / "whole")
    assert process.returncode == 0, process.stderr[-3000:]
    whole, moments = Run(tmp_path / "whole"), random.Random(SEED + 1)
    total = len(whole.metrics())

    def attempt(number: int) -> dict[str, Any]:
        out, saves = tmp_path / f"run{number}", set[str]()
        kills: list[dict[str, Any]] = []
        with (tmp_path / "log").open("ab") as log:
            agent = _started(recipe, out, log)
            for stretch in range(KILLS // RUNS):
                aim = (stretch + moments.random()) / (KILLS // RUNS) * 0.9 * total
                _until(agent, lambda aim=aim: lines_of(out / "metrics.jsonl") >= aim)  # type: ignore[misc]
                time.sleep(moments.uniform(0, 0.03))
                if agent.poll() is not None:
                    break
                victim = moments.choice(["process 0", "process 1", "torchrun"])
                seen = lines_of(out / "metrics.jsonl")
                if not _kill(agent, victim):
                    continue  # it had just ended, or not begun
                saves |= half_saved(out)
                kills.append({"progress": seen, "total": total, "victim": victim})
                if victim == "torchrun":
                    agent.wait()
                    agent = _started(recipe, out, log)
            _until(agent, lambda: False)
        assert agent.returncode == 0, (tmp_path / "log").read_text()[-3000:]
        return {"kills": kills, "during_a_save": len(saves), "outcomes": outcomes(Run(out), whole)}

    tortured("training by two processes", attempt)


def _started(recipe: Path, out: Path, log: Any) -> subprocess.Popen[bytes]:
    flags = ["--nproc-per-node", "2", "--max-restarts", str(RESTARTS), "-m", "predistill"]
    return subprocess.Popen([*TORCHRUN, *flags, "train", str(recipe), "--out", str(out)], stdout=log, stderr=log)


def _until(agent: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    """Wait until it is so, or until torchrun has ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not reached() and agent.poll() is None:
        assert time.monotonic() < deadline, "torchrun and its processes hang"
        time.sleep(0.002)


def _kill(agent: subprocess.Popen[bytes], victim: str) -> bool:
    """Kill a process, which torchrun sees and starts both again; or torchrun with both, as a machine does that is
    switched off: alone, it would leave them training."""
    ranks = {}
    for child in psutil.Process(agent.pid).children():
        try:
            ranks[f"process {child.environ()['RANK']}"] = child
        except (KeyError, psutil.Error):
            continue
    if victim == "torchrun":
        for each in (agent, *ranks.values()):
            each.kill()
        psutil.wait_procs(list(ranks.values()), timeout=10)
        return True
    if victim in ranks:
        ranks[victim].kill()
    return victim in ranks


def test_a_newest_checkpoint_damaged_anyhow_is_passed_over_and_said(
    pd_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(path.name for path in (pd_run.path / "checkpoints").iterdir())
    files = sorted(path.name for path in (pd_run.path / "checkpoints" / names[-1]).iterdir())
    assert len(files) == 4
    damaged: dict[str, list[str]] = {}
    for file in files:
        for how in ("flipped", "cut", "deleted"):
            out = tmp_path / f"{file}-{how}"
            shutil.copytree(pd_run.path, out, ignore=shutil.ignore_patterns("DONE", "model"))
            _damage(out / "checkpoints" / names[-1] / file, how)
            capsys.readouterr()
            run = train(read_recipe(pd_run.recipe), out=out)
            said = capsys.readouterr().err
            assert said.count("passed over") == 1, said
            assert f"{names[-1]}: passed over" in said
            assert timeless(run) == timeless(pd_run), (file, how)
            assert weights(run) == weights(pd_run), (file, how)
            damaged.setdefault(file, []).append(how)
    record("damaged checkpoints", {"passed over and said": damaged, "runs equal to the bit": len(files) * 3})


def _damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
        return
    if how == "flipped":
        data[random.Random(SEED).randrange(len(data))] ^= 1
    path.write_bytes(data[: len(data) // 2] if how == "cut" else data)
