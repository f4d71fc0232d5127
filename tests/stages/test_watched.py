"""What a run does about its failures: a batch that is not finite is left out and kept; a run that must not go on stops;
one that is rolled back goes on from before, without the steps of the failure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from predistill.corpus import Corpus
from predistill.errors import RunError
from predistill.recipe import read_recipe
from predistill.runs import Run
from predistill.stages.batches import Batches
from predistill.stages.train import train
from predistill.training.step import MicroBatch
from tests.made import STEPS, recipe_content, timeless, weights

BAD = 13  # the step, from 1, whose targets are not numbers


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Batches.window

    def window(self: Batches, step: int) -> Iterator[MicroBatch]:
        for batch in whole(self, step):
            if step == BAD - 1 and batch.targets is not None:
                bad = torch.full_like(batch.targets.logprob_NK, torch.nan)  # type: ignore[arg-type]
                yield replace(batch, targets=replace(batch.targets, logprob_NK=bad))
            else:
                yield batch

    monkeypatch.setattr(Batches, "window", window)


@pytest.fixture
def content(corpus: Path, store: Path) -> Callable[..., dict[str, Any]]:
    def made(policy: str, **more: Any) -> dict[str, Any]:
        return recipe_content(corpus, store, **{"watch": {"policy": policy}, "keep": 9, **more})

    return made


def found(run: Run) -> list[dict[str, Any]]:
    lines = (run.path / "findings.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == "not_finite"]


def steps(run: Run) -> list[int]:
    return [line["step"] for line in run.metrics() if line["kind"] == "step"]


def test_a_batch_that_is_not_finite_is_left_out_and_its_rows_are_kept(
    content: Callable[..., dict[str, Any]], corpus: Path, tmp_path: Path
) -> None:
    told: list[Any] = []
    run = train(read_recipe(content("warn")), out=tmp_path / "run", on_record=told.append)
    assert run.done is not None
    assert steps(run) == list(range(1, STEPS + 1))
    (bad,) = (line for line in run.metrics() if line["kind"] == "step" and line.get("skipped"))
    assert (bad["step"], bad["loss"]) == (BAD, None)
    (finding,) = found(run)
    assert (finding["step"], finding["action"]) == (BAD, "warn")
    assert [line["finding"] for line in told if line["kind"] == "finding" and line["step"] == BAD] == ["not_finite"]
    kept = np.load(run.path / finding["batch"])
    assert finding["batch"] in finding["sentence"]
    assert np.array_equal(kept["ids"], Corpus(corpus).rows(kept["row"])[0])


def test_rolled_back_it_goes_on_from_before_and_leaves_the_steps_of_the_failure_out(
    content: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    left_out = train(read_recipe(content("warn")), out=tmp_path / "left_out")
    rolled = train(read_recipe(content("rollback")), out=tmp_path / "rolled")
    (finding,) = found(rolled)
    assert (finding["step"], finding["action"]) == (BAD, "rollback")
    out = range(finding["since"], BAD + 1)  # the update before may be what broke it
    assert steps(rolled) == list(range(1, STEPS + 1))
    assert [line["step"] for line in rolled.metrics() if line.get("skipped")] == list(out)
    ours, theirs = (
        [line for line in timeless(run) if line["kind"] == "step" and line["step"] < out.start]
        for run in (rolled, left_out)
    )
    assert ours == theirs


def test_a_run_that_is_rolled_back_and_killed_skips_the_same_steps(
    content: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    whole = train(read_recipe(content("rollback")), out=tmp_path / "whole")

    def die_at_20(record: Any) -> None:
        if record["kind"] == "step" and record["step"] == 20:
            raise ZeroDivisionError

    recipe = read_recipe(content("rollback"))
    with pytest.raises(ZeroDivisionError):
        train(recipe, out=tmp_path / "run", on_record=die_at_20)
    run = train(recipe, out=tmp_path / "run")
    assert timeless(run) == timeless(whole)
    assert weights(run) == weights(whole)
    assert len(found(run)) == 1


def test_stopped_by_its_watch_it_goes_on_when_told_to_warn(
    content: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(RunError, match=rf"stopped by its watch\. .*{BAD}"):
        train(read_recipe(content("stop")), out=out)
    assert Run(out).done is None
    run = train(read_recipe(content("warn")), out=out)
    assert weights(run) == weights(train(read_recipe(content("warn")), out=tmp_path / "warned"))
    assert run.environment["changes"][-1]["from"] == {"watch": {"policy": "stop", "baseline": None}}


def test_a_run_whose_every_step_is_bad_is_given_up(corpus: Path, tmp_path: Path) -> None:
    content = recipe_content(
        corpus, lr={"kind": "linear", "start": 0.001, "end": 1e30}, optimizer={"clip": None}, checkpoint_every=1
    )
    with pytest.raises(RunError, match=r"not finite at step \d+, and 5 times in a row.*lower lr.peak"):
        train(read_recipe(content), out=tmp_path / "run")
