"""Evaluation: the record is what the model says of the held-out rows of every corpus, and it stands in the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from predistill.corpus import Corpus
from predistill.errors import RecipeError, RunError
from predistill.evaluation.copying import measure_copying
from predistill.runs import Run
from predistill.stages.evaluate import PROMPTS, evaluate
from predistill.stages.generate import generate
from predistill.stages.prepare import prepare
from predistill.students.build import load_model


@pytest.fixture
def run(lm_run: Run, tmp_path: Path) -> Run:
    """A copy that a test may write into."""
    shutil.copytree(lm_run.path, tmp_path / "lm")
    return Run(tmp_path / "lm")


def test_a_run_s_record_is_written_into_it_and_its_card(run: Run, pd_run: Run) -> None:
    heldout = Corpus(run.recipe["corpus"][0]["path"], split="held_out")
    before = run.metrics()
    record = evaluate(run.path, teacher=pd_run.path)
    assert json.loads(json.dumps(record)) == run.evaluation
    measured = record["heldout"]
    assert measured["rows"] == len(heldout)
    assert measured["teacher"]["name"] == "pd"
    assert measured["teacher"]["kl_nats"] > 0.01
    assert f"{measured['loss_nats']:.4f} nats" in (run.model_path / "README.md").read_text()
    last = [line for line in before if line["kind"] == "heldout"][-1]
    if len(heldout) <= 64:  # of as many rows, the cadence in training measured the same
        assert measured["loss_nats"] == pytest.approx(last["loss_nats"], rel=1e-6)
    assert run.metrics() == before


def test_its_samples_are_what_generate_writes(run: Run) -> None:
    record = evaluate(run.path, limit=1)
    assert [sample["prompt"] for sample in record["samples"]] == list(PROMPTS)
    for sample in record["samples"]:
        assert sample["text"] == generate(run.path, sample["prompt"], tokens=80)


def test_a_model_alone_needs_a_corpus_and_is_left_as_it_was(lm_run: Run, corpus: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(lm_run.model_path, model)
    with pytest.raises(RunError, match=r"does not name its text. Pass --corpus"):
        evaluate(model)
    before = {path: path.read_bytes() for path in model.iterdir()}
    record = evaluate(model, corpus=corpus, limit=3)
    assert record["heldout"]["rows"] == 3
    assert record["heldout"]["teacher"] is None
    assert {path: path.read_bytes() for path in model.iterdir()} == before


@pytest.fixture
def three_corpora(run: Run, masked_corpus: Path, sample_text: Path, tmp_path: Path) -> list[Path]:
    """The run's corpora: its own, one of the same last name, and one that holds nothing out; its `heldout` names a
    fourth."""
    own = Path(run.recipe["corpus"][0]["path"])
    alike, whole = tmp_path / "other" / own.name, tmp_path / "whole"
    shutil.copytree(masked_corpus, alike)
    prepare(sample_text, out=whole, tokenizer=run.model_path, row_len=64, held_out=0.0, processes=1)
    recipe = run.recipe
    recipe["corpus"] = [{"path": str(path), "weight": 1.0, "store": None} for path in (own, alike, whole, own)]
    recipe["heldout"] = [str(own), str(masked_corpus)]
    (run.path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return [own, alike, whole, masked_corpus]


def test_every_corpus_of_the_run_is_measured_under_a_name_of_its_own(run: Run, three_corpora: list[Path]) -> None:
    seen: list[tuple[int, int, str]] = []
    record = evaluate(run.path, limit=16, on_progress=lambda *done: seen.append(done))
    names = ["/".join(path.parts[-2:]) for path in three_corpora]
    assert list(record["corpora"]) == [names[0], names[1], names[3]]
    assert record["unmeasured"] == [names[2]]
    assert record["heldout"] == record["corpora"][names[0]]
    for name, measured in record["corpora"].items():
        assert (measured["corpus"], measured["rows"]) == (name, 16)
    own, alike, other = record["corpora"].values()
    assert alike == {**other, "corpus": alike["corpus"]}
    assert own["loss_nats"] != other["loss_nats"]  # documents are kept apart there
    assert seen == [(16, 48, names[0]), (32, 48, names[1]), (48, 48, names[3])]


def test_a_corpus_that_is_named_is_the_only_one(run: Run, three_corpora: list[Path]) -> None:
    evaluate(run.path, limit=5)
    record = evaluate(run.path, corpus=three_corpora[1], limit=5)
    assert list(record["corpora"]) == [three_corpora[1].name]
    assert record["unmeasured"] == []
    assert record["heldout"] == record["corpora"][three_corpora[1].name]
    assert f"Held-out text of {three_corpora[1].name}: " in (run.model_path / "README.md").read_text()


def test_sections_that_are_not_measured_are_kept_and_those_that_are_are_new(run: Run) -> None:
    tasks = {"results": {"hellaswag": {"n": 3}}, "suites": {}}
    run.write_json("evaluation.json", {"tasks": tasks, "heldout": {"loss_nats": -1.0}, "corpora": {"old": {}}})
    record = evaluate(run.path, limit=2)
    assert record["tasks"] == tasks
    assert record["heldout"]["loss_nats"] > 0
    assert list(record["corpora"]) == [record["heldout"]["corpus"]]
    assert json.loads(json.dumps(record)) == run.evaluation


def test_copying_is_measured_in_the_corpus_words_and_rows(run: Run) -> None:
    heldout = Corpus(run.recipe["corpus"][0]["path"], split="held_out")
    model = load_model(run.model_path, device=torch.device("cpu")).eval()
    record = evaluate(run.path, limit=1)["copying"]
    assert record == measure_copying(model, heldout)
    assert [line["length"] for line in record["lengths"]] == [8, 16, 32]
    assert {line["sequences"] for line in record["lengths"]} == {64}


def test_another_corpus_may_be_measured(run: Run, masked_corpus: Path) -> None:
    here, there = (evaluate(run.path, corpus=path)["heldout"]["loss_nats"] for path in (None, masked_corpus))
    assert here != there


def test_progress_ends_at_all_rows(run: Run) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(run.path, limit=20, on_progress=lambda *done: seen.append(done))
    assert seen[-1][0] == seen[-1][1] == min(20, len(Corpus(run.recipe["corpus"][0]["path"], split="held_out")))


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_row_is_refused(run: Run, limit: int) -> None:
    with pytest.raises(RecipeError, match="--limit"):
        evaluate(run.path, limit=limit)


def test_what_cannot_be_measured_is_refused_in_a_sentence(run: Run, sample_text: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--corpus is for the held-out suite"):
        evaluate(run.path, tasks="paper8", corpus=run.recipe["corpus"][0]["path"])
    asked = tmp_path / "asked.jsonl"  # a row and more of question before the first word that counts
    lines = [json.dumps({"question": f"{number}. " + "why? " * 99, "solution": "yes"}) for number in range(20)]
    asked.write_text("\n".join(lines), encoding="utf-8")
    prepare(
        asked,
        out=tmp_path / "asked",
        tokenizer=run.model_path,
        instruct=True,
        row_len=64,
        held_out=0.5,
        processes=1,
    )
    with pytest.raises(RunError, match="asked: no label counts in its first 1 held-out rows"):
        evaluate(run.path, corpus=tmp_path / "asked", limit=1)
    for name, settings in {
        "words": {"train_tokenizer": 2100},
        "empty": {"tokenizer": run.model_path, "held_out": 0.0},
    }.items():
        given: dict[str, Any] = {"row_len": 64, "processes": 1, **settings}
        prepare(sample_text, out=tmp_path / name, **given)
    with pytest.raises(RunError, match="has 2,048 words, the corpus 2,100"):
        evaluate(run.path, corpus=tmp_path / "words")
    with pytest.raises(RunError, match="its held-out split has no whole row"):
        evaluate(run.path, corpus=tmp_path / "empty")
    shutil.rmtree(run.model_path)
    with pytest.raises(RunError, match="no exported model here"):
        evaluate(run.path)
    assert run.evaluation is None
