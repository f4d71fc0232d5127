"""The backbone and the head taken apart give the model's own logits; a document never sees the one before it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from predistill.students.forward import head_of, hidden_states
from predistill.students.masks import document_mask

VOCABULARY, END = 120, 5
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "gemma2": Gemma2Config(**SHAPE, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=0.5),
    "cohere": CohereConfig(**SHAPE, logit_scale=0.25),
    "cohere2": Cohere2Config(**SHAPE, logit_scale=0.25),
    "granite": GraniteConfig(**SHAPE, logits_scaling=8.0),
    "phi": PhiConfig(**SHAPE),  # a bias in the head
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}


def made(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32)
    for parameter in model.parameters():  # far from the small values at the start, where a cap or a scale is no matter
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_the_head_s_logits_of_the_hidden_states_are_the_model_s(name: str) -> None:
    model = made(name)
    input_BT = torch.randint(VOCABULARY, (2, 16))
    ours = head_of(model).logits(hidden_states(model, input_BT, end_id=None).flatten(0, 1))
    assert torch.allclose(ours, model(input_BT, use_cache=False).logits.flatten(0, 1), atol=1e-5, rtol=1e-5)


def test_the_heads_that_are_tested_do_something_of_their_own() -> None:
    heads = {name: head_of(made(name)) for name in CONFIGS}
    assert heads["gemma2"].softcap == 0.5
    assert heads["cohere"].logit_scale == heads["cohere2"].logit_scale == 0.25
    assert heads["granite"].logit_scale == 0.125
    assert heads["phi"].bias_V is not None
    assert float(heads["phi"].bias_V.detach().abs().sum()) > 0
    plain = heads["llama"]
    assert (plain.softcap, plain.logit_scale, plain.bias_V) == (None, 1.0, None)


@pytest.mark.parametrize("name", ["llama", "qwen2", "cohere", "granite", "phi", "gpt2"])
@torch.no_grad()
def test_tokens_of_an_earlier_document_change_a_later_one_only_without_the_mask(name: str) -> None:
    model = made(name)
    first_BT = torch.randint(6, VOCABULARY, (1, 20))
    first_BT[0, 9] = END
    second_BT = first_BT.clone()
    second_BT[0, 2:6] = (second_BT[0, 2:6] + 7) % (VOCABULARY - 6) + 6
    assert not torch.equal(first_BT, second_BT)
    assert END not in second_BT[0, :9]
    masked = [hidden_states(model, ids, end_id=END) for ids in (first_BT, second_BT)]
    assert torch.equal(masked[0][:, 9:], masked[1][:, 9:])
    assert not torch.allclose(masked[0][:, 2:9], masked[1][:, 2:9])
    plain = [hidden_states(model, ids, end_id=None) for ids in (first_BT, second_BT)]
    assert not torch.allclose(plain[0][:, 9:], plain[1][:, 9:])


@torch.no_grad()
def test_a_row_of_one_document_is_the_same_with_the_mask() -> None:
    model = made("llama")
    input_BT = torch.randint(6, VOCABULARY, (2, 20))
    masked = hidden_states(model, input_BT, end_id=END)
    assert torch.allclose(masked, hidden_states(model, input_BT, end_id=None), atol=1e-6)


def test_the_mask_is_causal_within_documents_that_the_end_token_opens() -> None:
    row = [8, END, 9, 9, END, 7]
    documents = [0, 1, 1, 1, 2, 2]
    expected = [[j <= i and documents[i] == documents[j] for j in range(6)] for i in range(6)]
    mask = document_mask(torch.tensor([row]), end_id=END)
    assert mask.shape == (1, 1, 6, 6)
    assert mask[0, 0].tolist() == expected
