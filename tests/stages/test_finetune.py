"""Fine-tuning: a finished student goes on with conversations mixed into text; only what the assistant says counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predistill.corpus import Corpus
from predistill.recipe import read_recipe
from predistill.runs import Run
from predistill.stages.batches import Batches
from predistill.stages.evaluate import evaluate
from predistill.stages.inputs import open_inputs
from predistill.stages.prepare import prepare
from predistill.stages.train import train
from tests.made import ALONE, BATCH_ROWS, ROW_LEN, recipe_content


@pytest.fixture(scope="module")
def asked(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums, asked and answered."""
    folder = tmp_path_factory.mktemp("asked")
    lines = [
        {"question": f"What is {a} plus {b}?", "solution": f"{a} plus {b} is {a + b}."}
        for a in range(20)
        for b in range(9)
    ]
    (folder / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    prepare(
        folder / "asked.jsonl",
        out=folder / "corpus",
        tokenizer=corpus,
        row_len=ROW_LEN,
        held_out=0.2,
        processes=1,
        instruct=True,
    )
    return folder / "corpus"


@pytest.fixture(scope="module")
def content(asked: Path, corpus: Path, lm_run: Run) -> dict[str, Any]:
    entries = [{"path": str(asked)}, {"path": str(corpus)}]
    student = {"preset": "nano-xs", "from": str(lm_run.path)}
    return recipe_content(corpus, corpus=entries, student=student, heldout=[str(asked), str(corpus)])


def test_labels_that_are_not_the_assistants_do_not_count(content: dict[str, Any], asked: Path) -> None:
    recipe = read_recipe(content)
    with Batches(recipe, open_inputs(recipe), ALONE) as batches:
        corpus_of, rows = batches.rows(0)
        counted = sum(int((batch.label_BT != -100).sum()) for batch in batches.window(0))
    spoken = Corpus(asked).rows(rows[corpus_of == 0])[1]
    assert spoken is not None
    assert 0 < spoken.sum() < spoken.size
    assert counted == int(spoken.sum()) + int((corpus_of == 1).sum()) * ROW_LEN
    assert len(rows) == BATCH_ROWS


def test_a_fine_tuned_student_learns_the_answers_and_both_texts_are_measured(
    content: dict[str, Any], asked: Path, corpus: Path, tmp_path: Path
) -> None:
    run = train(read_recipe(content), out=tmp_path / "run")
    loss = {
        str(path): [
            line["loss_nats"] for line in run.metrics() if line["kind"] == "heldout" and line["corpus"] == str(path)
        ]
        for path in (asked, corpus)
    }
    assert loss[str(asked)][-1] < loss[str(asked)][0] - 0.3
    assert len(loss[str(corpus)]) == len(loss[str(asked)]) == 3


def test_of_responses_bits_a_byte_are_not_known_and_only_they_are_measured(
    content: dict[str, Any], asked: Path, tmp_path: Path
) -> None:
    run = train(read_recipe({**content, "tokens": 512}), out=tmp_path / "run")
    measured = evaluate(run.path)["heldout"]
    heldout = Corpus(asked, "held_out")
    counted = heldout.rows(np.arange(len(heldout)))[1]
    assert counted is not None
    assert measured["bits_per_byte"] is None
    assert measured["tokens"] == int(counted.sum())
    assert "nats a token, calibration" in (run.model_path / "README.md").read_text(encoding="utf-8")
