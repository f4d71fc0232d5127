"""Evaluation: the record is what the model says of the held-out rows, and it stands in the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from predistill.corpus import Corpus
from predistill.errors import RecipeError, RunError
from predistill.runs import Run
from predistill.stages.evaluate import PROMPTS, evaluate
from predistill.stages.generate import generate


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
    from predistill.stages.prepare import prepare

    with pytest.raises(RecipeError, match='--tasks is "paper8"'):
        evaluate(run.path, tasks="paper8")
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
