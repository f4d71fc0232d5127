"""Footprint: one record of all models, made whole or not at all; each model reads what it can read of one text."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import logging

from predistill.assets import teacher_path
from predistill.corpus import Corpus
from predistill.corpus.tokenizer import train_bpe
from predistill.errors import RecipeError, RunError
from predistill.evaluation.respelled import heldout_texts, text_bytes
from predistill.runs import Run
from predistill.stages.bench import Bench
from predistill.stages.evaluate import evaluate
from predistill.stages.footprint import Subject, _rotated, footprint
from predistill.students.build import build_student, student_config
from tests.made import Ended

SHORT = {"prompt_tokens": 20, "new_tokens": 12}


@pytest.fixture
def bench(corpus: Path) -> Iterator[Callable[..., Bench]]:
    """A bench in this process, which lets other tests hear Transformers' warnings again."""
    verbosity = logging.get_verbosity()

    def made(model: Path, **changes: Any) -> Bench:
        return Bench(model, **{"corpus": corpus, "dtype": "fp32", "prompts": 2, **SHORT, **changes})

    yield made
    logging.set_verbosity(verbosity)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has more columns than the corpus has words, and other words."""
    out = tmp_path_factory.mktemp("models") / "other"
    out.mkdir()
    tokenizer = train_bpe([("a tale of other words " * 9).encode(), "人".encode()], vocab_size=265)
    tokenizer.save(out)
    config = student_config("nano-xs", vocab_size=2100, row_len=64, end_id=tokenizer.end_id)
    build_student(config, seed=0, device=torch.device("cpu")).save_pretrained(out)
    return out


def test_a_student_and_its_teacher_in_one_record(
    pd_run: Run, corpus: Path, tmp_path: Path, call: Callable[..., Ended]
) -> None:
    short = ("--prompt-tokens", 20, "--new-tokens", 12, "--rounds", 1, "--limit", 5)
    ended = call("footprint", pd_run.path, "--teacher", teacher_path(), "--out", tmp_path, *short)
    assert ended.code == 0, ended.err
    record = json.loads((tmp_path / "footprint.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["footprint.json"]
    assert {key: record[key] for key in ("corpus", "teacher", "rounds", "new_tokens", "threads")} == {
        "corpus": corpus.name, "teacher": "teacher", "rounds": 1, "new_tokens": 12, "threads": 1
    }  # fmt: skip
    student, teacher = record["models"]
    assert (student["kind"], teacher["kind"]) == ("PD", "model")
    assert student["loss_nats"] == evaluate(pd_run.model_path, corpus=corpus, limit=5)["heldout"]["loss_nats"]
    assert teacher["loss_nats"] < student["loss_nats"]
    assert teacher["parameters"] > student["parameters"]
    for model in record["models"]:
        for batch in (1, 8):
            speeds = model["batches"][str(batch)]
            (first,), (decode,) = speeds["first_token_seconds"], speeds["decode_seconds"]
            assert speeds["prefill_tokens_per_second"] == pytest.approx(batch * 20 / first)
            assert speeds["decode_tokens_per_second"] == pytest.approx(batch * 11 / decode)
        assert model["name"] in ended.out
    assert teacher["acceptance"] is None
    assert student["acceptance"]["equal"] == student["acceptance"]["prompts"] == 8
    assert 0 <= student["acceptance"]["accepted"] <= student["acceptance"]["proposed"]
    again = call("footprint", pd_run.path, "--out", tmp_path)
    assert again.code == 2
    assert "footprint.json: is there already" in again.words


def test_the_measured_ones_are_models_of_runs_and_models_alone(lm_run: Run, pd_run: Run, tmp_path: Path) -> None:
    shutil.copytree(lm_run.model_path, tmp_path / "alone")
    found = [Subject.of(path) for path in (lm_run.path, pd_run.path, pd_run.model_path, tmp_path / "alone")]
    assert [subject.kind for subject in found] == ["LM", "PD", "PD", "model"]
    assert found[1].model == found[2].model
    assert found[0].bytes_on_disk == sum(path.stat().st_size for path in lm_run.model_path.iterdir())
    assert found[3].corpus is None


def test_every_model_begins_a_round_in_its_turn() -> None:
    assert [_rotated(3, by=number) for number in range(4)] == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]


def test_a_model_of_other_words_reads_the_same_text_in_its_own(
    bench: Callable[..., Bench], lm_run: Run, other_model: Path, corpus: Path
) -> None:
    heldout = Corpus(corpus, split="held_out")
    ours, theirs = bench(lm_run.model_path), bench(other_model)
    assert ours.facts()["words"] != theirs.facts()["words"]
    quality = ours.quality(rows=5)
    assert quality["loss_nats"] is not None
    bytes_ = text_bytes(heldout_texts(heldout, rows=5))
    assert quality["bits_per_byte"] == pytest.approx(quality["loss_nats"] * 5 * 64 / math.log(2) / bytes_)
    quality = theirs.quality(rows=5)
    assert quality["loss_nats"] is None
    assert quality["bits_per_byte"] is not None
    assert quality["bits_per_byte"] > 5  # it knows nothing, and has a token for nearly every byte
    assert theirs.acceptance(teacher=teacher_path()) is None


def test_without_a_text_nothing_is_said_of_quality(bench: Callable[..., Bench], lm_run: Run) -> None:
    alone = bench(lm_run.model_path, corpus=None)
    assert alone.quality(rows=5) == {"loss_nats": None, "bits_per_byte": None}
    assert alone.acceptance(teacher=teacher_path()) is None
    assert alone.time(batch=1)["decode_seconds"] > 0


def test_what_does_not_fit_is_refused_in_a_sentence(bench: Callable[..., Bench], lm_run: Run) -> None:
    with pytest.raises(RunError, match=r"takes 64 tokens, and 60 of a prompt and 12 new ones are 72. Ask for fewer"):
        bench(lm_run.model_path, prompt_tokens=60)
    with pytest.raises(RunError, match=r"held-out text has [\d,]+ tokens, fewer than --prompt-tokens 900,000"):
        bench(lm_run.model_path, prompt_tokens=900_000, new_tokens=-899_990)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dtype": "fp23"}, '--dtype is "fp23"; did you mean "fp32"?'),
        ({"new_tokens": 1}, "--new-tokens 1: give at least 2"),
        ({"rounds": 0}, "--rounds 0"),
        ({"out": "no/such/folder/x.json"}, "no/such/folder: no such directory"),
        ({"teacher": "no/teacher"}, "no/teacher: no such model"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_runs(
    settings: dict[str, Any], words: str, lm_run: Run, tmp_path: Path
) -> None:
    with pytest.raises((RecipeError, RunError)) as refused:
        footprint([lm_run.path], **{"out": tmp_path / "f.json", **settings})
    assert words in str(refused.value)
    assert not list(tmp_path.iterdir())
