from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predistill.evaluation.paired import paired
from predistill.report.answers import example_prompts, task_rows, task_words
from predistill.report.gains import Gain, gains
from predistill.report.records import read_record
from predistill.report.table import group_records
from predistill.report.tasks import Tasks, task_scores
from predistill.runs import Run

from .made_measures import task_result
from .made_runs import made_run

Change = Callable[[dict[str, Any]], None]


def _scored(paths: list[Path]) -> tuple[Tasks, list[Gain]]:
    records = [read_record(Run(path)) for path in paths]
    groups = group_records(records)
    found = gains(groups, records)
    tasks = task_scores(groups, found)
    assert tasks is not None
    return tasks, found


def _run(path: Path, results: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A made run; with `results`, these are its tasks, and all of them one suite."""
    made_run(path, steps=20, measures=True, **settings)
    if results is not None:
        evaluation = json.loads((path / "evaluation.json").read_text(encoding="utf-8"))
        evaluation["tasks"] = {"results": results, "suites": {"both": {"tasks": list(results)}}}
        (path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    return path


def _right(share: float, *, n: int = 200, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < share


def test_one_run_shows_the_figures_of_its_record(tmp_path: Path) -> None:
    path = _run(tmp_path / "lm", name="lm")
    tasks, _ = _scored([path])
    record = json.loads((path / "evaluation.json").read_text(encoding="utf-8"))["tasks"]
    for name, result in record["results"].items():
        metric = result["metrics"][result["headline"]]
        score = tasks.scores[name, "lm"]
        assert (score.value, score.stderr, score.n) == (metric["value"], metric["stderr"], 100)
    for suite, content in record["suites"].items():
        assert tasks.means[suite, "lm"].mean == pytest.approx(content["mean"])
        assert tasks.means[suite, "lm"].stderr == pytest.approx(content["stderr"])
        assert tasks.means[suite, "lm"].change is None, "a baseline is compared with nothing"


def test_seeds_are_averaged_row_by_row_and_paired_seed_by_seed(tmp_path: Path) -> None:
    right = {(name, seed): _right(0.4 + 0.2 * (name == "pd"), seed=seed) for name in ("lm", "pd") for seed in (0, 1)}
    paths = [
        _run(tmp_path / f"{name}-{seed}", {"piqa": task_result("piqa", right[name, seed])}, name=name, seed=seed,
             teacher=name == "pd", gain=0.2 * (name == "pd"))
        for name, seed in right
    ]  # fmt: skip
    tasks, _ = _scored(paths)
    ours, theirs = (np.mean([right[name, seed] for seed in (0, 1)], axis=0) for name in ("pd", "lm"))
    score = tasks.scores["piqa", "pd"]
    assert (score.value, score.seeds) == (pytest.approx(ours.mean()), 2)
    assert score.stderr == pytest.approx(ours.std(ddof=1) / np.sqrt(200))
    assert score.against == paired(ours, theirs)
    change = tasks.means["both", "pd"].change
    assert change is not None
    assert change.change == pytest.approx(ours.mean() / theirs.mean() - 1)


@pytest.mark.parametrize("other", [{"rows": "other"}, {"version": 2.0}, {"shots": 5}, {"correct": None}])
def test_other_rows_versions_or_shots_are_not_compared(tmp_path: Path, other: dict[str, Any]) -> None:
    plain = {"piqa": task_result("piqa", _right(0.4)), "c3": task_result("c3", _right(0.4))}
    taught = {name: dict(result) for name, result in plain.items()}
    taught["piqa"].update(other)
    paths = [_run(tmp_path / "lm", plain, name="lm"), _run(tmp_path / "pd", taught, name="pd", teacher=True, gain=0.2)]
    tasks, found = _scored(paths)
    score = tasks.scores.get(("piqa", "pd"))
    assert score is None or score.against is None
    assert tasks.scores["c3", "pd"].against is not None
    assert task_words(tasks, found) == [], "a suite is compared whole or not at all"
    left_out = [note for note in tasks.notes if "left out" in note]
    assert len(left_out) == (other != {"correct": None})


def test_one_seed_that_was_asked_otherwise_leaves_the_recipes_uncompared(tmp_path: Path) -> None:
    same = {"piqa": task_result("piqa", _right(0.4))}
    other = {"piqa": task_result("piqa", _right(0.4), rows="other")}
    results = {("lm", 0): same, ("lm", 1): other, ("pd", 0): same, ("pd", 1): same}
    paths = [
        _run(tmp_path / f"{name}-{seed}", result, name=name, seed=seed, teacher=name == "pd", gain=0.2 * (name == "pd"))
        for (name, seed), result in results.items()
    ]
    tasks, _ = _scored(paths)
    assert (tasks.scores["piqa", "lm"].seeds, tasks.scores["piqa", "pd"].seeds) == (1, 2)
    assert tasks.scores["piqa", "pd"].against is None
    assert "piqa: 1 run of lm was asked otherwise than the first run here, and is left out." in tasks.notes


@pytest.mark.parametrize(
    ("ours", "said"), [(0.8, "a difference that 200 rows a task can show"), (0.42, "no difference that 200 rows")]
)
def test_the_words_are_no_surer_than_the_rows(tmp_path: Path, ours: float, said: str) -> None:
    plain = {name: task_result(name, _right(0.4, seed=i)) for i, name in enumerate(("piqa", "c3"))}
    taught = {name: task_result(name, _right(ours, seed=i + 7)) for i, name in enumerate(("piqa", "c3"))}
    paths = [_run(tmp_path / "lm", plain, name="lm"), _run(tmp_path / "pd", taught, name="pd", teacher=True, gain=0.2)]
    tasks, found = _scored(paths)
    (sentence,) = task_words(tasks, found)
    assert said in sentence
    assert sentence.startswith("Over the two tasks of both, pd has ")


def test_the_recipe_that_is_spoken_of_is_not_chosen_by_its_answers(tmp_path: Path) -> None:
    paths = [_run(tmp_path / "lm", {"piqa": task_result("piqa", _right(0.4))}, name="lm")]
    for name, gain, share in (("better-loss", 0.3, 0.4), ("better-answers", 0.1, 0.9)):
        result, recipe = {"piqa": task_result("piqa", _right(share))}, {"loss": {"kind": name}}
        paths.append(_run(tmp_path / name, result, name=name, teacher=True, gain=gain, recipe=recipe))
    tasks, found = _scored(paths)
    assert "better-loss has" in task_words(tasks, found)[0]


def test_a_mean_over_nothing_right_is_not_divided_by(tmp_path: Path) -> None:
    plain = {"gsm8k": task_result("gsm8k", np.zeros(50, bool))}
    taught = {"gsm8k": task_result("gsm8k", np.ones(50, bool))}
    paths = [_run(tmp_path / "lm", plain, name="lm"), _run(tmp_path / "pd", taught, name="pd", teacher=True, gain=0.2)]
    tasks, found = _scored(paths)
    assert tasks.means["both", "pd"].change is None
    assert task_words(tasks, found) == []


def test_each_note_stands_once_and_names_its_task(tmp_path: Path) -> None:
    paths = [_run(tmp_path / f"lm-{seed}", name="lm", seed=seed) for seed in range(2)]
    tasks, _ = _scored(paths)
    assert len(tasks.notes) == 3
    assert tasks.notes[0].startswith("mmlu: The first rows of each subject")
    assert tasks.notes[2] == (
        "Prompts that were longer than the context of 256 tokens, and lost their beginning: mmlu 94 of 100."
    )


def test_the_table_has_the_suites_first_and_every_task_once(tmp_path: Path) -> None:
    paths = [_run(tmp_path / "lm", name="lm"), _run(tmp_path / "pd", name="pd", teacher=True, gain=0.2)]
    tasks, _ = _scored(paths)
    rows = task_rows(tasks)
    assert [row["name"] for row in rows[:3]] == ["paper8", "wide13", "hellaswag"]
    assert len(rows) == len({row["name"] for row in rows}) == 15
    baseline, distilled = rows[2]["cells"]
    assert baseline["change"] == ""
    assert "[" in distilled["change"]


def test_an_example_shows_what_each_recipe_made_of_the_same_prompt(tmp_path: Path) -> None:
    paths = [_run(tmp_path / "lm", name="lm"), _run(tmp_path / "pd", name="pd", teacher=True, gain=0.2)]
    examples = {example["task"]: example for example in example_prompts(_scored(paths)[0])}
    choices = examples["c3"]["choices"]
    assert [choice["right"] for choice in choices] == [False, False, True, False]
    assert [len(choice["scores"]) for choice in choices] == [2, 2, 2, 2]
    assert [label for label, _ in examples["gsm8k"]["written"]] == ["lm", "pd"]


def test_of_a_long_prompt_the_end_is_shown_and_of_what_was_written_the_beginning(tmp_path: Path) -> None:
    result = task_result("gsm8k", _right(0.4))
    result["example"] = {
        "prompt": "x " * 900 + "the question",
        "answer": "4",
        "written": "four" + "\n" * 90 + " the " * 900,
    }
    example = example_prompts(_scored([_run(tmp_path / "lm", {"gsm8k": result}, name="lm")])[0])[0]
    assert example["prompt"].endswith("the question")
    ((_, written),) = example["written"]
    assert written.startswith("four\n\nthe ")
    assert max(len(written), len(example["prompt"])) <= 601


@pytest.mark.parametrize(("answer", "right"), [(2, [2]), ([0, 3], [0, 3]), ("no", [3]), ("nothing of these", [])])
def test_the_right_choices_are_marked(tmp_path: Path, answer: Any, right: list[int]) -> None:
    result = task_result("c3", _right(0.4))
    result["example"]["answer"] = answer
    example = example_prompts(_scored([_run(tmp_path / "lm", {"c3": result}, name="lm")])[0])[0]
    assert [i for i, choice in enumerate(example["choices"]) if choice["right"]] == right
