"""What is wrong with a recipe, a corpus, a store, a run or its checkpoints ends in exit 2 and one sentence that says
what to do, with nothing written and no model built."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from predistill.runs import Run
from predistill.stages import beginning
from predistill.stages.prepare import prepare
from predistill.training import checkpoint
from tests.made import ROW_LEN, Ended, files_below, recipe_content

Call = Callable[..., Ended]
Case = Callable[["Made"], dict[str, Any]]


class Made:
    """What the cases are made from, and a folder to make it in."""

    def __init__(self, folder: Path, corpus: Path, store: Path, sample_text: Path) -> None:
        self.folder, self.corpus, self.store, self.text = folder, corpus, store, sample_text

    def content(self, **changes: Any) -> dict[str, Any]:
        return recipe_content(self.corpus, self.store, **changes)

    def copied(self, what: Path) -> Path:
        return Path(shutil.copytree(what, self.folder / f"copy-{what.name}"))

    def other_corpus(self, **settings: Any) -> Path:
        """The same text, prepared in another way."""
        out = self.folder / "other"
        prepare(self.text, out=out, **({"tokenizer": self.corpus, "row_len": ROW_LEN, "processes": 1} | settings))
        return out

    def trained(self, call: Call, **changes: Any) -> Path:
        """A run of two steps."""
        path = written(self.folder / "recipe.yaml", self.content(tokens=2 * 8 * ROW_LEN, **changes))
        assert call("train", path, "--out", self.folder / "trained", "--json").code == 0
        return self.folder / "trained"


@pytest.fixture
def made(tmp_path: Path, corpus: Path, store: Path, sample_text: Path) -> Made:
    return Made(tmp_path, corpus, store, sample_text)


def written(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture
def refused(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """The one sentence in which `predistill train` refuses a recipe, before anything is built or written."""

    def run(content: dict[str, Any], *flags: str | Path, out: Path | None = None) -> str:
        def built(*_: Any, **__: Any) -> None:
            raise AssertionError("a model was built")

        out = out or tmp_path / "run"
        before = files_below(out)
        with monkeypatch.context() as patch:
            patch.setattr(beginning, "build_student", built)
            patch.setattr(beginning, "load_model", built)
            ended = call("train", written(tmp_path / "recipe.yaml", content), "--out", out, *flags)
        assert ended.code == 2, ended
        assert ended.out == ""
        assert "Traceback" not in ended.err
        assert ended.err.count("\n") == 1, ended.err
        assert files_below(out) == before
        assert out.exists() == bool(before)
        return ended.words

    return run


def damaged_manifest(made: Made) -> dict[str, Any]:
    copy = made.copied(made.corpus)
    text = (copy / "manifest.json").read_text(encoding="utf-8")
    (copy / "manifest.json").write_text(text.replace('"row_len": 64', '"row_len": 65'), encoding="utf-8")
    return recipe_content(copy)


def unsealed_store(made: Made) -> dict[str, Any]:
    copy = made.copied(made.store)
    (copy / "manifest.json").unlink()
    return recipe_content(made.corpus, copy)


def damaged_store(made: Made) -> dict[str, Any]:
    copy = made.copied(made.store)
    data = (copy / "manifest.json").read_bytes()
    (copy / "manifest.json").write_bytes(data.replace(b'"rows": ', b'"rows": 1', 1))
    return recipe_content(made.corpus, copy)


def no_model(made: Made) -> dict[str, Any]:
    (made.folder / "empty").mkdir()
    return made.content(student={"from": str(made.folder / "empty")})


def mixed(made: Made, **settings: Any) -> dict[str, Any]:
    other = made.other_corpus(**settings)
    return recipe_content(made.corpus, corpus=[{"path": str(made.corpus)}, {"path": str(other)}])


def own_tokenizer(made: Made) -> dict[str, Any]:
    return made.content(heldout=[str(made.other_corpus(tokenizer=None, train_tokenizer=2048))])


# name -> (the recipe, what the sentence has to hold)
RECIPES: dict[str, tuple[Case, tuple[str, ...]]] = {
    "unknown key": (lambda m: m.content(batch_token=512), ('did you mean "batch_tokens"?', "recipe.yaml: batch_token")),
    "unknown kind": (lambda m: m.content(loss={"kind": "kdl"}), ('loss.kind is "kdl"; did you mean "kld"?',)),
    "wrong value": (lambda m: m.content(keep=0), ("recipe.yaml: keep is 0", "greater than or equal to 1")),
    "combination": (
        lambda m: m.content(loss={"kind": "reverse_kld"}, tail={"kind": "zero"}),
        ("reverse_kld", "zero", "renormalise"),
    ),
    "no store named": (lambda m: m.content(corpus=[{"path": str(m.corpus)}]), ("names no store", "predistill capture")),
    "missing corpus": (lambda m: recipe_content(m.folder / "none"), ("none: no prepared corpus", "predistill prepare")),
    "damaged corpus": (damaged_manifest, ("manifest.json: damaged", "Prepare the corpus again")),
    "mixed tokenizers": (
        lambda m: mixed(m, tokenizer=None, train_tokenizer=400),
        ("do not mix: vocabulary 400 and 2048", "the same tokenizer"),
    ),
    "mixed rows": (lambda m: mixed(m, row_len=32), ("do not mix: row length 32 and 64", "--row-len")),
    "missing store": (lambda m: recipe_content(m.corpus, m.folder / "none"), ("none: no teacher store is here",)),
    "store of another corpus": (
        lambda m: recipe_content(m.other_corpus(seed=1, held_out=0.15), m.store),
        ("was captured over another corpus", "Capture it again"),
    ),
    "store of another tokenizer": (
        lambda m: recipe_content(m.other_corpus(tokenizer=None, train_tokenizer=400), m.store),
        ("was captured over another corpus", "predistill capture"),
    ),
    "store of another mask": (
        lambda m: recipe_content(m.other_corpus(document_mask=True), m.store),
        ("was captured over another corpus", "predistill capture"),
    ),
    "unsealed store": (unsealed_store, ("copy-top95-100: it is not complete", "run its capture again")),
    "damaged store": (damaged_store, ("copy-top95-100/manifest.json", "checksum")),
    "wider truncation": (lambda m: m.content(truncation={"kind": "top_k", "k": 50}), ("not wider", "capture again")),
    "batch not whole rows": (lambda m: m.content(batch_tokens=500), ("row length 64", "Try 512")),
    "missing teacher": (
        lambda m: m.content(teacher={"kind": "live", "model": str(m.folder / "none")}),
        ("none: no such teacher", "Name a Hugging Face directory"),
    ),
    "unknown preset": (lambda m: m.content(student={"preset": "nano-z"}), ('student.preset is "nano-z"', "nano-xs")),
    "no start": (
        lambda m: m.content(student={"from": str(m.folder / "none")}),
        ("student.from", "none is not there", "Name a finished run"),
    ),
    "start is no model": (no_model, ("student.from", "empty is no model", "Name a finished run")),
    "baseline is no run": (
        lambda m: m.content(watch={"baseline": str(m.folder / "none")}),
        ("none: not a run", "predistill train"),
    ),
    "held-out text of another tokenizer": (own_tokenizer, ("heldout", "has another tokenizer", "leave it out")),
    "log over a store": (
        lambda m: m.content(log_targets={"out": str(m.store)}),
        ("this store is complete", "Name another log_targets.out"),
    ),
    "log of a mixture": (
        lambda m: m.content(
            corpus=[{"path": str(m.corpus), "store": str(m.store)}] * 2, log_targets={"out": str(m.folder / "log")}
        ),
        ("log_targets", "this recipe mixes 2", "Train on one"),
    ),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_a_wrong_recipe_corpus_or_store_is_refused_in_a_sentence(
    kind: str, made: Made, refused: Callable[..., str]
) -> None:
    case, words = RECIPES[kind]
    said = refused(case(made))
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("changes", "processes", "words"),
    [
        ({}, 3, ("8 rows, which 3 processes cannot share evenly", "Try 576")),
        ({"shard": 3}, 4, ("shard is 3, and 4 processes", "Choose a divisor")),
    ],
)
def test_what_the_processes_cannot_share_is_refused(
    changes: dict[str, Any],
    processes: int,
    words: tuple[str, ...],
    made: Made,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("RANK", "0")
    said = refused(made.content(**changes))
    for word in words:
        assert word in said


def test_a_start_of_other_words_or_not_finished_is_refused(made: Made, call: Call, refused: Callable[..., str]) -> None:
    start = made.trained(call)
    other = made.other_corpus(tokenizer=None, train_tokenizer=2048)
    said = refused(recipe_content(other, student={"from": str(start)}))
    assert f"student.from: {start} has another tokenizer" in said
    (start / "DONE").unlink()
    said = refused(made.content(student={"from": str(start)}))
    assert f"student.from: {start} is a run that is not finished" in said
    assert "predistill train" in said


def test_an_architecture_that_is_not_known_whole_is_refused_and_nothing_is_written(made: Made, call: Call) -> None:
    from transformers import BertConfig

    BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=9
    ).save_pretrained(made.folder / "bert")  # looks ahead
    content = made.content(student={"preset": str(made.folder / "bert")})
    out = made.folder / "run"
    ended = call("train", written(made.folder / "recipe.yaml", content), "--out", out)
    assert ended.code == 2
    assert "student: BertLMHeadModel" in ended.words
    assert "Traceback" not in ended.err
    assert not out.exists()


def test_a_run_of_another_recipe_corpus_or_store_is_refused_with_both_ways_out(
    made: Made, call: Call, refused: Callable[..., str]
) -> None:
    run = made.trained(call)
    same = Run(run).recipe
    said = refused(same | {"seed": 5}, out=run)
    assert "other recipe: seed was 0, now 5" in said
    assert "--overwrite" in said
    assert "--force-resume" in said
    identity = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    for what in ("corpus", "store"):
        changed = identity | {"identity": identity["identity"] | {what: ["0" * 16]}}
        (run / "environment.json").write_text(json.dumps(changed), encoding="utf-8")
        said = refused(same, out=run)
        assert f"other inputs: {what} was ['0000000000000000']" in said
        assert "--overwrite" in said
        assert "--force-resume" in said


def test_a_run_none_of_whose_checkpoints_is_whole_is_not_begun_anew_by_itself(
    made: Made, call: Call, refused: Callable[..., str]
) -> None:
    run = made.trained(call)
    (run / "DONE").unlink()
    for path in (run / "checkpoints").iterdir():
        (path / "state.json").unlink()
    said = refused(Run(run).recipe, "--json", out=run)
    assert "none of its checkpoints is whole" in said
    assert "--overwrite" in said
    assert call("train", made.folder / "recipe.yaml", "--out", run, "--overwrite", "--json").code == 0


def test_a_wrong_recipe_overwrites_nothing(made: Made, call: Call, refused: Callable[..., str]) -> None:
    run = made.trained(call)
    assert "no prepared corpus" in refused(recipe_content(made.folder / "none"), "--overwrite", out=run)
    notes = made.folder / "notes"
    notes.mkdir()
    (notes / "note.txt").write_text("mine", encoding="utf-8")
    assert "notes: not a run" in refused(made.content(), "--overwrite", out=notes)
    assert "notes: not empty, and not a run" in refused(made.content(), out=notes)


def test_a_run_ended_before_its_first_checkpoint_begins_anew_and_says_so(made: Made, call: Call) -> None:
    run = made.trained(call)
    (run / "DONE").unlink()
    shutil.rmtree(run / "checkpoints")
    ended = call("train", made.folder / "recipe.yaml", "--out", run, "--json")
    assert ended.code == 0
    assert f"{run}: was ended before its first checkpoint; begins anew." in ended.words


def test_a_disk_that_is_full_at_a_checkpoint_is_said_and_the_run_goes_on_when_there_is_room(
    made: Made, call: Call, pd_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = written(made.folder / "recipe.yaml", pd_run.recipe), made.folder / "run"
    whole, left = checkpoint.write_sealed_json, 2

    def full(*given: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(*given)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_sealed_json", full)
        ended = call("train", recipe, "--out", out, "--json")
    assert ended.code == 2
    assert "a checkpoint could not be written (No space left on device). Make room" in ended.words
    assert "Traceback" not in ended.err
    ended = call("train", recipe, "--out", out, "--json")
    assert ended.code == 0, ended
    steps = [line["loss"] for line in Run(out).metrics() if line["kind"] == "step"]
    assert steps == [line["loss"] for line in pd_run.metrics() if line["kind"] == "step"]
