"""Training under torchrun, two processes: the run of one process; stopped, killed and going on, nothing is lost or done
twice; what all of them refuse is said once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import yaml

from predistill.recipe import read_recipe
from predistill.runs import Run
from predistill.stages.train import train
from predistill.store import Store
from tests.made import STEPS, files_below, recipe_content, timeless, weights
from tests.processes import PATIENCE_SECONDS, TORCHRUN, lines_of, torchrun

LOSSES = ("loss", "lm", "kd", "kl", "loss_nats")
ROUNDED = (*LOSSES, "grad_norm", "ece", "bits_per_byte")  # all else is the same to the bit


def written(folder: Path, name: str, content: dict[str, Any]) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def started(recipe: Path, out: Path, *flags: str) -> subprocess.Popen[str]:
    """Two processes that train, under a torchrun that is this process's child."""
    command = [*TORCHRUN, "--nproc-per-node", "2", *flags, "-m", "predistill", "train", str(recipe), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> str:
    """What it said, once it has ended."""
    try:
        return process.communicate(timeout=PATIENCE_SECONDS)[1]
    except subprocess.TimeoutExpired:
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            each.kill()
        pytest.fail(f"still runs after {PATIENCE_SECONDS:g} s: {process.communicate()[1][-3000:]}")


def at_line(process: subprocess.Popen[str], out: Path, lines: int) -> None:
    """Wait until metrics.jsonl has so many lines."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while lines_of(out / "metrics.jsonl") < lines and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert process.poll() is None, process.communicate()[1][-3000:]


def close(ours: Run, theirs: Run) -> None:
    """The same lines, losses up to what sums in another order make of them: 1e-6 for twenty steps, then 1e-3, for
    AdamW makes much of little."""
    for one, two in zip(timeless(ours), timeless(theirs), strict=True):
        assert {key: one[key] for key in one if key not in ROUNDED} == {
            key: two[key] for key in two if key not in ROUNDED
        }
        losses = {key: two[key] for key in LOSSES if key in two}
        assert {key: one[key] for key in losses} == pytest.approx(losses, abs=1e-6 if one["step"] <= 20 else 1e-3)


class Whole(NamedTuple):
    """A run and the store of its own targets."""

    run: Run
    log: Path


@pytest.fixture(scope="module")
def alone(corpus: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("alone")
    content = recipe_content(corpus, store, log_targets={"out": str(folder / "log")})
    return Whole(train(read_recipe(content), out=folder / "run"), folder / "log")


@pytest.fixture(scope="module")
def together(corpus: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The same by two processes, never stopped."""
    folder = tmp_path_factory.mktemp("together")
    recipe = written(folder, "recipe", recipe_content(corpus, store, log_targets={"out": str(folder / "log")}))
    process = torchrun(2, "-m", "predistill", "train", recipe, "--out", folder / "run")
    assert process.returncode == 0, process.stderr[-3000:]
    return Whole(Run(folder / "run"), folder / "log")


def test_two_processes_make_the_run_of_one(alone: Whole, together: Whole) -> None:
    assert together.run.environment["machine"]["ranks"] == 2
    assert [line["step"] for line in timeless(together.run) if line["kind"] == "step"] == list(range(1, STEPS + 1))
    close(together.run, alone.run)
    assert (together.run.path / "model" / "config.json").read_bytes() == (
        alone.run.path / "model" / "config.json"
    ).read_bytes()


def test_two_processes_log_the_targets_of_one(alone: Whole, together: Whole) -> None:
    ours, theirs = Store(together.log), Store(alone.log)
    ours.verify()
    assert np.array_equal(ours.present(), theirs.present())
    assert len(ours.present()) == STEPS // 4 * 8
    one, two = ours.rows(ours.present()), theirs.rows(ours.present())
    for name in ("log_rest_N", "label_logprob_N", "entropy_N", "logit_std_N"):
        a, b = getattr(one, name), getattr(two, name)
        assert np.abs(a - b).max() < 0.2, name
        assert np.abs(a - b).mean() < 2e-3, name
    assert (one.length_N != two.length_N).mean() < 0.01
    assert ours.manifest["self_test"] == pytest.approx(theirs.manifest["self_test"], rel=1e-3)
    assert ours.manifest["teacher"]["name"] == theirs.manifest["teacher"]["name"]


def test_stopped_by_sigterm_it_is_saved_once_and_one_process_goes_on(
    corpus: Path, store: Path, alone: Whole, tmp_path: Path
) -> None:
    content, out = recipe_content(corpus, store), tmp_path / "run"
    process = started(written(tmp_path, "recipe", content), out)
    at_line(process, out, 3)
    process.send_signal(signal.SIGTERM)
    words = ended(process)
    stopped = Run(out)
    assert stopped.done is None
    at = stopped.metrics()[-1]["step"]
    assert 3 <= at < STEPS
    assert words.count("Run it again to go on.") == 1, words
    assert f"stopped at step {at} of {STEPS}, saved" in words
    assert (out / "checkpoints" / f"step-{at:08d}").is_dir()
    assert not list((out / "checkpoints").glob("*.tmp"))
    train(read_recipe(content), out=out)
    close(stopped, alone.run)


def test_a_killed_process_is_started_again_and_the_run_ends_to_the_bit_as_if_it_never_was(
    corpus: Path, store: Path, together: Whole, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = started(written(tmp_path, "recipe", recipe_content(corpus, store)), out, "--max-restarts", "1")
    at_line(process, out, 10)
    victim = random.choice([child for child in psutil.Process(process.pid).children() if "RANK" in child.environ()])
    os.kill(victim.pid, signal.SIGKILL)
    words = ended(process)
    assert process.returncode == 0, words[-3000:]
    assert timeless(Run(out)) == timeless(together.run)
    assert weights(Run(out)) == weights(together.run)
    assert (out / "findings.jsonl").read_bytes() == (together.run.path / "findings.jsonl").read_bytes()


def test_what_is_refused_is_said_once(corpus: Path, together: Whole, tmp_path: Path) -> None:
    before = files_below(together.run.path)
    absent = written(tmp_path, "absent", recipe_content(tmp_path / "none"))  # all processes see it
    other = written(tmp_path, "other", recipe_content(corpus, seed=5))  # the first one sees it
    processes = [started(absent, tmp_path / "run"), started(other, together.run.path)]
    words = [ended(process) for process in processes]
    assert [process.returncode for process in processes] == [1, 1]  # torchrun's own, of processes that exit with 2
    for said, sentence in zip(words, ("no prepared corpus here", "this run has other recipe"), strict=True):
        assert said.count(sentence) == 1, said
        assert "exitcode  : 2" in said, said
        assert "Process 1:" not in said
        assert said.count("Traceback") == 1, said  # torchrun's
    assert not (tmp_path / "run").exists()
    assert files_below(together.run.path) == before
