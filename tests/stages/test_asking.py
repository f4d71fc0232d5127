"""Tasks of a run are kept one by one, taken over where nothing has changed, measured anew where anything has, and
compared with a baseline on the same rows only."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from predistill.errors import PredistillError, RecipeError, RunError
from predistill.evaluation.scores import headline_scores
from predistill.evaluation.suites import PAPER8
from predistill.runs import Run
from predistill.stages.asking import task_words
from predistill.stages.evaluate import evaluate
from tests.evaluation.ours import FILES, SHOTS, lines_of, write_tasks
from tests.made import files_below

BOTH = "piqa,winogrande"
MARK = -7.0  # no task gives it: a result that still has it was not measured again


@pytest.fixture
def run(lm_run: Run, tmp_path: Path) -> Run:
    """A copy that a test may write into."""
    shutil.copytree(lm_run.path, tmp_path / "lm")
    return Run(tmp_path / "lm")


@pytest.fixture
def other(lm_run: Run, tmp_path: Path) -> Run:
    """Another, of other weights."""
    shutil.copytree(lm_run.path, tmp_path / "other")
    change_weights(tmp_path / "other" / "model")
    return Run(tmp_path / "other")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The files of some tasks, which a test may change."""
    return write_tasks(tmp_path / "eval", "piqa", "winogrande", "ceval")


def tasks_of(run: Run) -> dict[str, Any]:
    assert run.evaluation is not None
    tasks: dict[str, Any] = run.evaluation["tasks"]
    return tasks


def change_weights(model: Path) -> None:
    file = model / "model.safetensors"
    weights = load_file(file)
    save_file({name: weight * 2 for name, weight in weights.items()}, file, metadata={"format": "pt"})


def mark(run: Run, *names: str) -> None:
    """Put the mark into the records of the tasks `names`."""
    record = run.evaluation or {}
    for name in names:
        result = record["tasks"]["results"][name]
        result["metrics"][result["headline"]]["value"] = MARK
    run.write_json("evaluation.json", record)


def measured_anew(run: Run) -> set[str]:
    """The tasks whose record has lost the mark."""
    results = tasks_of(run)["results"]
    return {name for name, result in results.items() if result["metrics"][result["headline"]]["value"] != MARK}


def test_tasks_and_the_held_out_section_are_kept_beside_each_other(run: Run, data: Path) -> None:
    evaluate(run.path, limit=2)
    heldout = run.evaluation
    record = evaluate(run.path, tasks=BOTH, data=data, limit=3)
    assert record == run.evaluation
    assert heldout is not None
    assert record == {**heldout, "tasks": record["tasks"]}
    again = evaluate(run.path, limit=4)
    assert again["heldout"]["rows"] == 4
    assert again["tasks"] == record["tasks"]
    both = evaluate(run.path, tasks="piqa, heldout", data=data, limit=2)
    assert both["heldout"]["rows"] == both["tasks"]["results"]["piqa"]["n"] == 2
    assert both == run.evaluation


def test_a_record_of_the_papers_suite_is_whole(run: Run, tmp_path: Path) -> None:
    data = write_tasks(tmp_path / "all", *PAPER8)
    tasks = evaluate(run.path, tasks="paper8", data=data, limit=3)["tasks"]
    assert tuple(tasks["results"]) == PAPER8
    for name, result in tasks["results"].items():
        correct = headline_scores(result)
        assert len(correct) == result["n"] == 3, name
        assert result["metrics"][result["headline"]]["value"] == correct.mean()
        assert result["limit"] == 3
        assert result["opens_with"] == "<|endoftext|>"
        assert result["command"]
        assert result["example"]["prompt"]
        assert all((data / file["name"]).is_file() for file in result["files"])
        assert str(tmp_path) not in json.dumps(result)
    metrics = [result["metrics"][result["headline"]] for result in tasks["results"].values()]
    suite = tasks["suites"]["paper8"]
    assert suite["tasks"] == list(PAPER8)
    assert suite["mean"] == pytest.approx(np.mean([metric["value"] for metric in metrics]))
    assert suite["stderr"] == pytest.approx(sum(metric["stderr"] ** 2 for metric in metrics) ** 0.5 / 8)
    assert suite["baseline"] is None
    words = task_words(tasks, "paper8")
    assert "stands in for the paper's Chinese KBQA" in words
    assert "and are not scored" in words  # of the sixth example
    assert "Prompts that were longer than the context of 64 tokens, and lost their beginning: mmlu 3 of 3, c3 " in words
    assert [line.split()[0] for line in words.splitlines()[:9]] == [*PAPER8, "mean"]


def test_what_is_measured_is_kept_when_the_next_task_fails_and_is_not_measured_again(run: Run, data: Path) -> None:
    evaluate(run.path, limit=2)

    def stop(_done: int, _all: int, name: str) -> None:
        if name == "winogrande":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(run.path, tasks=BOTH, data=data, on_progress=stop)
    assert list(tasks_of(run)["results"]) == ["piqa"]
    assert tasks_of(run)["suites"] == {}
    assert run.evaluation is not None
    assert run.evaluation["heldout"]["rows"] == 2
    mark(run, "piqa")
    evaluate(run.path, tasks=BOTH, data=data)
    assert list(tasks_of(run)["results"]) == ["piqa", "winogrande"]
    assert measured_anew(run) == {"winogrande"}
    assert list(tasks_of(run)["suites"]) == [BOTH]


def test_asked_again_nothing_is_measured_and_nothing_changes(run: Run, data: Path) -> None:
    evaluate(run.path, tasks=BOTH, data=data)
    mark(run, "piqa", "winogrande")
    before = tasks_of(run)["results"]
    seen: list[tuple[int, int, str]] = []
    evaluate(run.path, tasks=BOTH, data=data, on_progress=lambda *done: seen.append(done))
    assert tasks_of(run)["results"] == before
    assert seen == [(6, 11, "piqa"), (11, 11, "winogrande")]
    evaluate(run.path, tasks=BOTH, data=data, limit=90)  # as many rows as there are
    assert measured_anew(run) == set()


@pytest.mark.parametrize(
    ("words", "limit", "anew"),
    [
        (BOTH, 3, {"piqa", "winogrande"}),
        (BOTH, 5, {"piqa"}),  # all five of the other
        ("piqa:1,winogrande", None, {"piqa"}),
        ("winogrande", 2, {"winogrande"}),
    ],
)
def test_other_rows_or_examples_are_measured_anew_and_the_rest_is_not(
    words: str, limit: int | None, anew: set[str], run: Run, data: Path
) -> None:
    evaluate(run.path, tasks=BOTH, data=data)
    mark(run, "piqa", "winogrande")
    evaluate(run.path, tasks=words, data=data, limit=limit)
    assert measured_anew(run) == anew


def test_other_weights_are_measured_anew(run: Run, data: Path) -> None:
    evaluate(run.path, tasks=BOTH, data=data)
    mark(run, "piqa", "winogrande")
    change_weights(run.model_path)
    evaluate(run.path, tasks=BOTH, data=data)
    assert measured_anew(run) == {"piqa", "winogrande"}


def test_a_file_that_says_something_else_is_measured_anew(run: Run, data: Path) -> None:
    evaluate(run.path, tasks=BOTH, data=data)
    mark(run, "piqa", "winogrande")
    rows = FILES["piqa.validation"]
    (data / "piqa.validation.jsonl").write_bytes(lines_of([{**rows[0], "context": "Why?"}, *rows[1:]]))
    evaluate(run.path, tasks=BOTH, data=data)
    assert measured_anew(run) == {"piqa"}


def test_a_file_of_other_examples_is_too(run: Run, data: Path) -> None:
    evaluate(run.path, tasks="ceval:2,piqa", data=data)
    mark(run, "ceval", "piqa")
    (data / "ceval.dev.jsonl").write_bytes(lines_of(FILES["ceval.dev"][::-1]))
    evaluate(run.path, tasks="ceval:2,piqa", data=data)
    assert measured_anew(run) == {"ceval"}


def test_a_suites_mean_goes_when_what_it_is_of_is_measured_anew(run: Run, data: Path) -> None:
    evaluate(run.path, tasks=BOTH, data=data)
    evaluate(run.path, tasks="winogrande", data=data)
    assert list(tasks_of(run)["suites"]) == [BOTH, "winogrande"]
    evaluate(run.path, tasks="piqa", data=data, limit=2)
    assert list(tasks_of(run)["suites"]) == ["winogrande", "piqa"]
    for suite in tasks_of(run)["suites"].values():
        (name,) = suite["tasks"]
        assert (
            suite["mean"] == tasks_of(run)["results"][name]["metrics"][{"piqa": "acc_norm"}.get(name, "acc")]["value"]
        )


def test_progress_counts_the_rows_of_all_tasks(run: Run, data: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    evaluate(run.path, tasks=BOTH, data=data, on_progress=lambda *done: seen.append(done))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert {(total, name) for _, total, name in seen} == {(11, "piqa"), (11, "winogrande")}
    assert seen[-1] == (11, 11, "winogrande")


def test_a_baseline_gives_the_change_of_the_mean_on_the_same_rows(run: Run, other: Run, data: Path) -> None:
    evaluate(run.path, tasks=BOTH, data=data)
    record = run.evaluation
    assert record is not None
    for name, correct in (("piqa", "110111"), ("winogrande", "10111")):
        record["tasks"]["results"][name]["correct"] = correct
    run.write_json("evaluation.json", record)
    tasks = evaluate(other.path, tasks=BOTH, data=data, baseline=run.path)["tasks"]
    suite = tasks["suites"][BOTH]
    baseline = suite["baseline"]
    theirs = (5 / 6 + 4 / 5) / 2
    assert (baseline["run"], baseline["mean"]) == ("tiny", pytest.approx(theirs))
    assert baseline["relative_change"] == pytest.approx(suite["mean"] / theirs - 1)
    assert baseline["interval"][0] <= baseline["relative_change"] <= baseline["interval"][1]
    assert baseline["interval"][0] < baseline["interval"][1]
    words = task_words(tasks, BOTH)
    assert f"against tiny ({theirs:.1%}): {baseline['relative_change']:+.1%}, 95 % interval from " in words
    mark(other, "piqa", "winogrande")  # asked alone before, or against another: the answers are the same
    again = evaluate(other.path, tasks=BOTH, data=data)["tasks"]["suites"][BOTH]
    assert again["baseline"] is None
    assert measured_anew(other) == set()


def test_a_baseline_that_knows_nothing_gives_no_relative_change(run: Run, other: Run, data: Path) -> None:
    evaluate(run.path, tasks="piqa", data=data)
    record = run.evaluation
    assert record is not None
    record["tasks"]["results"]["piqa"]["correct"] = "000000"
    run.write_json("evaluation.json", record)
    tasks = evaluate(other.path, tasks="piqa", data=data, baseline=run.path)["tasks"]
    assert tasks["suites"]["piqa"]["baseline"] == {
        "run": "tiny",
        "mean": 0.0,
        "relative_change": None,
        "interval": None,
    }
    assert "against tiny (0.0%): no relative change, since it may be 0" in task_words(tasks, "piqa")
    assert other.evaluation == {"tasks": tasks}


def test_a_baseline_that_was_not_asked_the_same_is_refused_before_anything_is_measured(
    run: Run, other: Run, data: Path, tmp_path: Path
) -> None:
    def refused(told: str, words: str, baseline: Path, limit: int | None = None) -> None:
        with pytest.raises(RunError) as error:
            evaluate(other.path, tasks=words, data=data, baseline=baseline, limit=limit)
        assert told in str(error.value)
        assert other.evaluation is None

    advice = "Evaluate it first, with the same --tasks, --data and --limit."
    refused(f"--baseline {run.path}: has not been asked piqa. {advice}", "piqa", run.path)
    evaluate(run.path, limit=2)
    refused("has not been asked piqa", "piqa", run.path)
    evaluate(run.path, tasks="piqa", data=data)
    refused("has not been asked winogrande", BOTH, run.path)
    otherwise = f"has been asked other rows or in another way in piqa. {advice}"
    refused(otherwise, "piqa", run.path, 3)
    refused(otherwise, "piqa:1", run.path)
    (data / "piqa.validation.jsonl").write_bytes(lines_of(FILES["piqa.validation"][::-1]))
    refused(otherwise, "piqa", run.path)
    refused(f"{tmp_path / 'none'}: not a run", "piqa", tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"data": "eval"}, "--data is for tasks. Name some with --tasks, such as paper8."),
        ({"baseline": "lm"}, "--baseline is for tasks. Name some"),
        ({"tasks": BOTH, "corpus": "c"}, "--corpus is for the held-out suite. Add heldout to --tasks."),
        ({"tasks": BOTH, "teacher": "t"}, "--teacher is for the held-out suite. Add heldout"),
        ({"tasks": BOTH, "limit": 0}, "--limit 0: give at least 1 row."),
        ({"tasks": BOTH, "out": "record.json"}, "--out record.json: is for a model that is no run"),
        ({"tasks": "piqua"}, 'no task "piqua"; did you mean "piqa"?'),
        ({"tasks": "heldout,piqua"}, 'no task "piqua"'),
        ({"tasks": "", "data": None}, "names no task"),
        ({"tasks": " , ", "data": None}, "names no task"),
        ({"tasks": "piqa:x"}, "after the colon stands how many examples"),
        ({"tasks": f"piqa:{SHOTS}"}, "asked with 10 examples, and there are 5 beside a row to ask"),
        ({"tasks": "boolq"}, "no file boolq.validation.jsonl"),
        ({"tasks": "heldout,boolq"}, "no file boolq.validation.jsonl"),
    ],
)
def test_what_cannot_be_asked_or_would_not_be_read_is_refused_before_a_model_is_loaded(
    options: dict[str, Any], told: str, run: Run, data: Path
) -> None:
    (run.model_path / "model.safetensors").write_bytes(b"no model")
    given = {"data": data, **options} if "tasks" in options else options
    with pytest.raises(PredistillError) as error:
        evaluate(run.path, **given)
    assert told in str(error.value)
    assert run.evaluation is None


def test_a_model_directory_is_asked_and_left_as_it_was(run: Run, data: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(run.model_path, model)
    before = files_below(model)
    ours = evaluate(run.path, tasks=BOTH, data=data)["tasks"]
    theirs = evaluate(model, tasks=BOTH, data=data)
    assert theirs == {"tasks": ours}
    assert files_below(model) == before
    (model / "README.md").unlink()  # nothing says that we made it: its tokenizer decides what opens a prompt
    foreign = evaluate(model, tasks="piqa", data=data)["tasks"]["results"]["piqa"]
    assert foreign["opens_with"] is None
    assert foreign["example"]["scores"] != ours["results"]["piqa"]["example"]["scores"]


def test_a_models_record_goes_where_it_is_told_to_and_is_gone_on_with(run: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.json"
    first = evaluate(run.model_path, tasks="piqa", data=data, out=out)
    assert json.loads(out.read_text(encoding="utf-8")) == first
    first["tasks"]["results"]["piqa"]["metrics"]["acc_norm"]["value"] = MARK
    out.write_text(json.dumps(first), encoding="utf-8")
    second = evaluate(run.model_path, tasks=BOTH, data=data, out=out)
    assert json.loads(out.read_text(encoding="utf-8")) == second
    assert second["tasks"]["results"]["piqa"]["metrics"]["acc_norm"]["value"] == MARK
    change_weights(run.model_path)
    third = evaluate(run.model_path, tasks="piqa", data=data, out=out)
    assert third["tasks"]["results"]["piqa"]["metrics"]["acc_norm"]["value"] != MARK
    assert run.evaluation is None


def test_a_text_that_the_tokenizer_cannot_spell_is_named_and_what_was_measured_before_stays(
    run: Run, data: Path
) -> None:
    words = ["<|endoftext|>", "<unk>", "Question", ":", "Answer", "How", "do", "I", "dry", "shirts", "?", ".", "Hang"]
    words += ["on", "a", "line", "Put", "them", "in", "pond", *map(str, range(10))]
    spelling = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    spelling.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=spelling, eos_token="<|endoftext|>", unk_token="<unk>"
    ).save_pretrained(run.model_path)  # fmt: skip
    with pytest.raises(RunError) as error:
        evaluate(run.path, tasks=BOTH, data=data)
    assert str(error.value) == (
        f"{data / 'winogrande.dev.jsonl'} line 1: the model's tokenizer has no words for 'was leaving.'. "
        "Leave the task out, or take a model of its language."
    )
    assert list(tasks_of(run)["results"]) == ["piqa"]


def test_a_tokenizer_of_more_words_than_the_model_is_refused(run: Run, data: Path) -> None:
    spelling = Tokenizer(models.WordLevel({str(i): i for i in range(3000)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=spelling, eos_token="1").save_pretrained(run.model_path)
    with pytest.raises(RunError, match=r"The tokenizer has 3,000 words and the model 2,048\. Put the model's own"):
        evaluate(run.path, tasks="piqa", data=data)


def test_without_lm_eval_it_is_said_what_to_install_and_the_held_out_suite_needs_none(
    run: Run, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "lm_eval" else find(name, *more)
    )
    with pytest.raises(RecipeError, match=r'not installed\. Run: pip install "predistill\[eval\]"'):
        evaluate(run.path, tasks="piqa", data=data)
    assert "tasks" not in evaluate(run.path, limit=1)
