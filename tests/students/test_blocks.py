"""The blocks of any architecture: as many as it says, with nearly all its parameters in them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import AutoModel, AutoModelForSeq2SeqLM, BertConfig, PreTrainedModel, T5Config

from predistill.errors import RecipeError
from predistill.students.blocks import blocks_of
from tests.students.families import FAMILIES, LAYERS, made


def outside(model: PreTrainedModel) -> int:
    """Parameters that lie in no block: an embedding, the final norm, the head."""
    inside = {id(p) for block in blocks_of(model) for p in block.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in inside)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_causal_model_has_as_many_blocks_as_it_says_and_nearly_all_parameters_in_them(name: str) -> None:
    model = made(FAMILIES[name])
    blocks = blocks_of(model)
    assert len(blocks) == LAYERS
    assert len({type(block) for block in blocks}) == 1
    ends = {id(m.weight): m.weight.numel() for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    positions = 32 * 80 if name in ("gpt2", "opt") else 0  # learned positions
    assert sum(ends.values()) <= outside(model) <= sum(ends.values()) + positions + 4 * 32


def test_an_encoder_decoder_has_the_blocks_of_both() -> None:
    config = T5Config(vocab_size=99, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_decoder_layers=3, num_heads=2)
    blocks = blocks_of(AutoModelForSeq2SeqLM.from_config(config))
    assert len(blocks) == 5
    assert len({id(block) for block in blocks}) == 5


def test_an_encoder_has_its_own() -> None:
    config = BertConfig(vocab_size=99, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
    model = AutoModel.from_config(config)
    assert [id(block) for block in blocks_of(model)] == [id(block) for block in model.encoder.layer]


def test_experts_and_lists_of_bare_layers_are_no_blocks_and_a_block_used_twice_is_one() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(2, 2)) for _ in range(3)])

    backbone, shared = torch.nn.Module(), Block()
    backbone.inner = torch.nn.Module()
    backbone.inner.blocks = torch.nn.ModuleList([shared, Block(), shared])
    backbone.projections = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    found = blocks_of(cast(Any, SimpleNamespace(base_model=backbone)))
    assert [id(block) for block in found] == [id(shared), id(backbone.inner.blocks[1])]


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"student: no list of blocks in Linear, so nothing to shard .*ModuleList"):
        blocks_of(cast(Any, SimpleNamespace(base_model=torch.nn.Linear(2, 2))))
