"""Writing: one seed one text, greedy at temperature 0, within the context, and nobody else's random numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from predistill.errors import RunError
from predistill.runs import Run
from predistill.stages.generate import generate


def test_one_seed_writes_one_text_and_another_seed_another(lm_run: Run) -> None:
    texts = [generate(lm_run.path, "The ", tokens=30, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0]


def test_a_run_and_its_model_directory_write_the_same(lm_run: Run) -> None:
    assert generate(lm_run.path, "人", tokens=20) == generate(lm_run.model_path, "人", tokens=20)


def test_at_temperature_0_every_word_is_the_likeliest(lm_run: Run) -> None:
    model = AutoModelForCausalLM.from_pretrained(lm_run.model_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(lm_run.model_path)
    ids = [model.config.eos_token_id, *tokenizer.encode("He was ", add_special_tokens=False)]
    start = len(ids)
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    expected = tokenizer.decode([i for i in ids[start:] if i != model.config.eos_token_id])
    assert generate(lm_run.path, "He was ", tokens=12, temperature=0) == expected
    assert generate(lm_run.path, "He was ", tokens=12, temperature=0, seed=9) == expected


@pytest.mark.parametrize("words", [0, 60, 500])
def test_the_context_is_never_left(lm_run: Run, words: int) -> None:
    assert isinstance(generate(lm_run.path, "on the sea " * words, tokens=200), str)


def test_writing_leaves_the_random_numbers_of_others_alone(lm_run: Run) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    generate(lm_run.path, tokens=3)
    assert torch.equal(torch.rand(3), expected)


def test_without_a_model_it_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no exported model here. Name a finished run"):
        generate(tmp_path)
