"""The exported student: Transformers loads it, and it says what the student in memory said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from predistill.corpus import Corpus
from predistill.runs import Run
from predistill.students.build import build_student, student_config
from predistill.students.card import made_here, model_card
from predistill.students.export import export_student
from predistill.training.checkpoint import Checkpoints
from predistill.training.optim import adamw
from tests.made import ALONE, files_below, in_training

CPU = torch.device("cpu")
TEXTS = [
    "Call me Ishmael. It's 3.14%!",
    "滚滚长江东逝水，浪花淘尽英雄。",
    "Mixed 中英 text\nwith  spaces\t— and 🙂",
    "",
]


def test_the_exported_student_reloads_in_transformers_with_the_logits_of_the_trained_one(pd_run: Run) -> None:
    corpus = Corpus(pd_run.recipe["corpus"][0]["path"])
    config = student_config("nano-xs", vocab_size=corpus.vocab_size, row_len=corpus.row_len, end_id=corpus.end_id)
    trained = build_student(config, seed=99, device=CPU).eval()
    checkpoints = Checkpoints(pd_run.path / "checkpoints", ALONE, keep=1)
    path, _ = checkpoints.newest()
    assert path is not None
    optimizer = adamw(trained, betas=(0.9, 0.95), weight_decay=0.1)
    facts = checkpoints.load(path, in_training(trained), optimizer)
    assert facts["clock"]["step"] == pd_run.environment["steps"]
    exported = AutoModelForCausalLM.from_pretrained(pd_run.model_path).eval()
    input_BT = torch.from_numpy(corpus.rows([0, 1])[0][:, :-1])
    with torch.no_grad():
        assert torch.equal(exported(input_BT).logits, trained(input_BT).logits)
    assert sum(p.numel() for p in exported.parameters()) == pd_run.environment["parameters"]


@pytest.mark.parametrize("text", TEXTS)
def test_the_exported_tokenizer_loads_and_gives_every_text_back(pd_run: Run, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pd_run.model_path)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == Corpus(pd_run.recipe["corpus"][0]["path"]).vocab_size


def test_the_tokenizer_and_the_model_agree_on_the_end_of_a_text(pd_run: Run) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pd_run.model_path)
    model = AutoModelForCausalLM.from_pretrained(pd_run.model_path)
    end_id = Corpus(pd_run.recipe["corpus"][0]["path"]).end_id
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id == end_id


def test_the_weights_are_safetensors_and_everybody_may_read_them(pd_run: Run) -> None:
    names = {path.name for path in pd_run.model_path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in pd_run.model_path.iterdir())


def test_an_export_replaces_an_older_one_whole(tmp_path: Path, corpus: Path) -> None:
    config = student_config("nano-xs", vocab_size=2048, row_len=64, end_id=0)
    out = tmp_path / "model"
    export_student(build_student(config, seed=0, device=CPU), out=out, tokenizer=corpus, card="first")
    first = files_below(out)
    (out / "stray").write_text("old")
    (tmp_path / "model.tmp").mkdir()  # of an export that was killed
    (tmp_path / "model.tmp" / "stray").write_text("half")
    export_student(build_student(config, seed=1, device=CPU), out=out, tokenizer=corpus, card="second")
    second = files_below(out)
    assert second.keys() == first.keys()
    assert second["README.md"] == b"second"
    assert second["model.safetensors"] != first["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_card_tells_what_the_run_s_records_tell(pd_run: Run, lm_run: Run) -> None:
    evaluation = {"heldout": {"loss_nats": 6.54321, "bits_per_byte": 3.21, "ece": 0.0123, "tokens": 4567}}
    card = model_card(pd_run.recipe, pd_run.environment, evaluation)
    head, body = card.removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(head)["library_name"] == "transformers"
    for fact in (f"{pd_run.environment['parameters']:,} parameters", "6.5432 nats", "3.2100 bits", "4,567 tokens"):
        assert fact in body
    recipe = body.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(recipe) == json.loads(json.dumps(pd_run.recipe))
    teacher = pd_run.environment["inputs"]["store"][0]["manifest"]["teacher"]["name"]
    assert f"distributions of {teacher}" in body
    assert "Held-out" not in model_card(pd_run.recipe, pd_run.environment, {"tasks": {}})
    suites = {
        "paper8": {"limit": 100, "mean": 0.314, "stderr": 0.012},
        "piqa": {"limit": None, "mean": 0.6, "stderr": 0.01},
    }
    card = model_card(pd_run.recipe, pd_run.environment, {"tasks": {"suites": suites}})
    assert "Tasks (paper8, 100 rows of each): 31.4% right on average, standard error 1.2%." in card
    assert "Tasks (piqa): 60.0% right" in card
    assert "on the text alone" in model_card(lm_run.recipe, lm_run.environment)
    assert (lm_run.model_path / "README.md").read_text() == model_card(lm_run.recipe, lm_run.environment)


def test_a_model_made_here_is_known_by_its_card(pd_run: Run, tmp_path: Path) -> None:
    assert made_here(pd_run.model_path)
    assert not made_here(tmp_path)
    for card in ("no front matter", "---\ntags: [other]\n---\n", "---\n- predistill\n---\n", "---\n{\n---\npredistill"):
        (tmp_path / "README.md").write_text(card)
        assert not made_here(tmp_path)
