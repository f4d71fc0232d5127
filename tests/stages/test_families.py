"""Students of other families than the presets' go the whole way: train, taught, stop, go on, export, reload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from predistill.corpus import Corpus
from predistill.recipe import read_recipe
from predistill.stages.train import train
from tests.made import recipe_content, timeless, weights

STUDENTS = Path(__file__).parents[2] / "recipes" / "nano" / "students"


@pytest.mark.parametrize("family", ["qwen3-moe", "gemma"])
def test_a_student_of_another_family_learns_goes_on_to_the_bit_and_reloads(
    family: str, corpus: Path, store: Path, tmp_path: Path
) -> None:
    recipe = read_recipe(recipe_content(corpus, store, student={"preset": str(STUDENTS / family)}))
    whole = train(recipe, out=tmp_path / "whole")
    steps = [line for line in whole.metrics() if line["kind"] == "step"]
    assert steps[-1]["lm"] < steps[0]["lm"] - 0.5
    assert steps[-1]["kl"] < steps[0]["kl"] - 0.5

    def die_at_20(record: Any) -> None:
        if record["kind"] == "step" and record["step"] == 20:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(recipe, out=tmp_path / "run", on_record=die_at_20)
    run = train(recipe, out=tmp_path / "run")
    assert timeless(run) == timeless(whole)
    assert weights(run) == weights(whole)

    model = AutoModelForCausalLM.from_pretrained(run.model_path).eval()
    ids = torch.from_numpy(Corpus(corpus, "held_out").rows([0, 1])[0])
    with torch.no_grad():
        loss = model(ids[:, :-1]).logits.flatten(0, 1).log_softmax(dim=-1).gather(1, ids[:, 1:].reshape(-1, 1)).mean()
    last = [line for line in run.metrics() if line["kind"] == "heldout"][-1]
    assert -loss.item() == pytest.approx(last["loss_nats"], abs=1.0)  # two rows of the 64
    assert type(model).__name__ in ("Qwen3MoeForCausalLM", "Gemma2ForCausalLM")


def test_a_routers_loss_is_in_the_loss_and_not_in_what_is_reported_of_the_text(corpus: Path, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_content(corpus, student={"preset": str(STUDENTS / "qwen3-moe")}, tokens=512))
    first = train(recipe, out=tmp_path / "run").metrics()[0]
    assert 0 < first["loss"] - first["lm"] < 0.1
