"""Student sizes: the paper's parameter counts, by arithmetic and by a model that is built."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from predistill.students import PRESETS
from predistill.students.build import student_config

PAPER_WORDS = 151_552
PAPER = {
    "330m": 334_521_344,
    "670m": 669_041_664,
    "1.9b": 1_866_565_632,
    "3.8b": 3_749_882_880,
    "6.8b": 6_820_171_776,
}
NANO = {"nano-xs": 0.09e6, "nano-s": 0.23e6, "nano-m": 0.86e6, "nano-l": 2.2e6}


@pytest.mark.parametrize("name", [*PAPER, *NANO])
def test_a_preset_counts_the_parameters_of_the_model_it_makes(name: str) -> None:
    config = student_config(name, vocab_size=PAPER_WORDS, row_len=4096, end_id=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    parameters = sum(p.numel() for p in model.parameters())
    assert PRESETS[name].parameters(PAPER_WORDS) == parameters
    if name in PAPER:
        assert parameters == PAPER[name]
    embeddings = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    inner = sum(p.numel() for p in model.parameters() if id(p) not in embeddings)
    assert PRESETS[name].non_embedding_parameters == inner


@pytest.mark.parametrize("name", NANO)
def test_the_nano_sizes_are_what_their_names_promise_at_2048_words(name: str) -> None:
    assert PRESETS[name].parameters(2048) == pytest.approx(NANO[name], rel=0.06)


def test_every_preset_is_tested() -> None:
    assert PRESETS.keys() == PAPER.keys() | NANO.keys()
