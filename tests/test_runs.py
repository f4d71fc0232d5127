"""A run directory: what was written is what is read, a torn line is no line, and another recipe is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from predistill.errors import RunError
from predistill.runs import Metrics, Run, find_runs, remove_run
from tests.made import files_below

RECIPE = {"name": "小试", "seed": 3, "lr": {"kind": "constant", "value": 0.1}}
ENVIRONMENT: dict[str, Any] = {"identity": {"corpus": ["f00d"], "store": []}, "steps": 9}


def made(path: Path) -> Run:
    return Run.open(path, recipe=RECIPE, environment=ENVIRONMENT)


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    assert (run.name, run.recipe, run.environment) == ("小试", RECIPE, ENVIRONMENT)
    assert run.evaluation is None
    assert run.done is None
    run.write_json("evaluation.json", {"heldout": {"loss_nats": 1.5}})
    run.write_json("DONE", {"seconds": 2.0})
    again = Run(tmp_path / "run")
    assert again.evaluation == {"heldout": {"loss_nats": 1.5}}
    assert again.done == {"seconds": 2.0}


def test_what_is_no_run_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not a run \(no recipe.yaml\).*predistill train"):
        Run(tmp_path)


def test_a_run_goes_on_with_the_same_recipe_and_inputs(tmp_path: Path) -> None:
    made(tmp_path)
    assert made(tmp_path).recipe == RECIPE


def test_another_recipe_is_refused_by_the_first_key_that_differs_and_nothing_changes(tmp_path: Path) -> None:
    run = made(tmp_path)
    before = files_below(run.path)
    other = RECIPE | {"seed": 4, "extra": 1}
    with pytest.raises(RunError, match=r"other recipe: seed was 3, now 4 \(and 1 more\).*--out.*--overwrite"):
        Run.open(tmp_path, recipe=other, environment=ENVIRONMENT)
    assert files_below(run.path) == before


def test_other_inputs_are_refused_and_nothing_changes(tmp_path: Path) -> None:
    run = made(tmp_path)
    before = files_below(run.path)
    other = ENVIRONMENT | {"identity": {"corpus": ["beef"], "store": []}}
    with pytest.raises(RunError, match=r"other inputs: corpus was \['f00d'\], now \['beef'\]"):
        Run.open(tmp_path, recipe=RECIPE, environment=other)
    assert files_below(run.path) == before


def test_other_versions_and_machines_may_go_on(tmp_path: Path) -> None:
    made(tmp_path)
    moved = Run.open(tmp_path, recipe=RECIPE, environment=ENVIRONMENT | {"machine": {"cores": 4}})
    assert moved.environment["machine"] == {"cores": 4}


def test_a_directory_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="not empty, and not a run"):
        made(tmp_path)
    assert files_below(tmp_path) == {"thesis.txt": b"years of work"}


def test_lines_are_visible_at_once_and_a_torn_last_one_is_left_out(tmp_path: Path) -> None:
    run = made(tmp_path)
    metrics = Metrics(run, resume_step=0)
    metrics.write({"kind": "step", "step": 1})
    assert run.metrics() == [{"kind": "step", "step": 1}]
    metrics.close()
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    line = json.dumps({"kind": "step", "step": 2}).encode() + b"\n"
    for cut in range(len(line)):
        (tmp_path / "metrics.jsonl").write_bytes(whole + line[:cut])
        assert [entry["step"] for entry in run.metrics()] == [1]
    (tmp_path / "metrics.jsonl").write_bytes(whole + line)
    assert [entry["step"] for entry in run.metrics()] == [1, 2]


def test_findings_are_read_in_order_and_a_torn_one_is_left_out_wherever_it_stands(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    assert run.findings == []
    lines = [{"kind": "spike", "step": step, "sentence": "尖峰"} for step in (3, 9)]
    first, second = (json.dumps(line, ensure_ascii=False).encode() for line in lines)
    for cut in range(1, len(second)):
        (run.path / "findings.jsonl").write_bytes(first + b"\n" + second[:cut])
        assert run.findings == lines[:1]
        (run.path / "findings.jsonl").write_bytes(first + b"\n" + second[:cut] + b"\n" + second + b"\n")
        assert run.findings == lines


def test_resuming_cuts_the_lines_after_the_step_and_appends(tmp_path: Path) -> None:
    run = made(tmp_path)
    metrics = Metrics(run, resume_step=0)
    for step in (1, 2, 3):
        metrics.write({"kind": "step", "step": step, "loss": step / 10})
        metrics.write({"kind": "heldout", "step": step})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"torn')
    metrics = Metrics(run, resume_step=2)
    assert run.metrics()[-1] == {"kind": "heldout", "step": 2}
    assert [line["step"] for line in run.metrics()] == [1, 1, 2, 2]
    metrics.write({"kind": "step", "step": 3, "loss": 7.0})
    metrics.close()
    assert [line["step"] for line in run.metrics()] == [1, 1, 2, 2, 3]
    assert run.metrics()[-1]["loss"] == 7.0


def test_a_run_without_metrics_has_none(tmp_path: Path) -> None:
    assert made(tmp_path).metrics() == []


def test_a_damaged_json_is_named_with_what_to_do(tmp_path: Path) -> None:
    run = made(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"heldout": ')
    with pytest.raises(RunError, match=r"evaluation.json: not readable as JSON .*Delete it and run the command again"):
        _ = run.evaluation


def test_a_recipe_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("- 1\n")
    with pytest.raises(RunError, match=r"recipe.yaml: not a recipe"):
        _ = Run(tmp_path).recipe


def test_every_run_below_a_directory_is_found_by_name(tmp_path: Path) -> None:
    for name in ("b", "a", "deep/er/c"):
        made(tmp_path / name)
    assert [run.path.name for run in find_runs(tmp_path)] == ["a", "b", "c"]
    assert [run.path.name for run in find_runs(tmp_path / "a")] == ["a"]
    assert find_runs(tmp_path / "deep" / "er" / "c" / "none") == []


def test_only_a_run_is_removed(tmp_path: Path) -> None:
    made(tmp_path / "run")
    (tmp_path / "other").mkdir()
    with pytest.raises(RunError, match="not a run"):
        remove_run(tmp_path / "other")
    remove_run(tmp_path / "run")
    remove_run(tmp_path / "run")  # nothing there: nothing to do
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
