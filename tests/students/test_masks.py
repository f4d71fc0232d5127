"""Documents in one row do not see each other, and a layer's own window stays what it was."""

from __future__ import annotations

import pytest
import torch
from transformers import Llama4TextConfig, PretrainedConfig, PreTrainedModel

from predistill.errors import RecipeError
from predistill.students.forward import hidden_states
from predistill.students.masks import document_mask, layer_masks
from tests.students.families import FAMILIES, SHAPE, VOCABULARY, made

END, LENGTHS = 5, (11, 1, 9, 15)  # the windows of the families are 6 tokens
SEEING = ["llama", "qwen3-moe", "mixtral-window", "gemma2", "gemma3", "gpt-oss", "gpt-neox", "falcon", "deepseek-v3"]
WINDOWED: PretrainedConfig = type(FAMILIES["mixtral"])(**FAMILIES["mixtral"].to_dict() | {"sliding_window": 6})


def model_of(name: str) -> PreTrainedModel:
    return made(WINDOWED if name == "mixtral-window" else FAMILIES[name])


def row() -> torch.Tensor:
    """[1, T]: documents of LENGTHS tokens, each opened by the end token."""
    generator = torch.Generator().manual_seed(2)
    texts = [torch.randint(END + 1, VOCABULARY, (length,), generator=generator) for length in LENGTHS]
    for text in texts:
        text[0] = END
    return torch.cat(texts)[None]


@pytest.mark.parametrize("name", SEEING)
@torch.no_grad()
def test_a_document_in_a_packed_row_is_what_it_is_alone(name: str) -> None:
    model = model_of(name)
    packed_BTD = hidden_states(model, row(), end_id=END)
    for packed, text in zip(packed_BTD.split(LENGTHS, dim=1), row().split(LENGTHS, dim=1), strict=True):
        alone = model.base_model(input_ids=text, use_cache=False).last_hidden_state  # with the mask of its own making
        assert torch.allclose(packed, alone, atol=2e-5 * float(alone.abs().max()))


@pytest.mark.parametrize("name", [*SEEING, "gpt2"])
@torch.no_grad()
def test_a_row_of_one_document_longer_than_the_window_is_the_same_with_the_mask(name: str) -> None:
    model = model_of(name)
    input_BT = torch.randint(END + 1, VOCABULARY, (2, 30))
    masked, plain = (hidden_states(model, input_BT, end_id=end_id) for end_id in (END, None))
    assert torch.allclose(masked, plain, atol=2e-5 * float(plain.abs().max()))


@pytest.mark.parametrize("name", ["mixtral-window", "gemma2", "gemma3", "gpt-oss"])
@torch.no_grad()
def test_the_windows_that_are_tested_matter(name: str) -> None:
    model = model_of(name)
    input_BT = torch.randint(END + 1, VOCABULARY, (1, 30))
    windowed = hidden_states(model, input_BT, end_id=END)
    model.config.sliding_window = 64
    assert not torch.allclose(windowed, hidden_states(model, input_BT, end_id=END), atol=1e-3)


def test_each_kind_of_layer_gets_its_own_mask() -> None:
    masks = layer_masks(made(FAMILIES["gemma3"]), row(), end_id=END)
    assert isinstance(masks, dict)
    full, sliding = masks["full_attention"][0, 0], masks["sliding_attention"][0, 0]
    assert torch.equal(full, document_mask(row(), end_id=END)[0, 0])
    positions = range(sum(LENGTHS))
    assert sliding.tolist() == [[bool(full[i, j]) and i - j < 6 for j in positions] for i in positions]


def test_chunks_are_counted_from_the_start_of_a_document() -> None:
    config = Llama4TextConfig(
        **SHAPE, head_dim=8, num_local_experts=2, attention_chunk_size=4, no_rope_layers=[1, 1, 0],
        layer_types=["chunked_attention", "chunked_attention", "full_attention"],
    )  # fmt: skip
    masks = layer_masks(made(config), torch.tensor([[9, 9, END, 9, 9, 9, 9, 9]]), end_id=END)
    assert isinstance(masks, dict)
    place, chunk = [0, 1, 0, 1, 2, 3, 4, 5], [(0, 0), (0, 0), (1, 0), (1, 0), (1, 0), (1, 0), (1, 1), (1, 1)]
    seen = masks["chunked_attention"][0, 0].tolist()
    assert seen == [[j <= i and chunk[i] == chunk[j] for j in range(len(place))] for i in range(len(place))]


def test_attention_that_adds_its_mask_gets_numbers_and_one_that_selects_gets_truths() -> None:
    added = layer_masks(
        made(FAMILIES["gemma2"]), row(), end_id=END
    )  # Transformers runs Gemma 2 eagerly, for its softcap
    assert isinstance(added, dict)
    full = added["full_attention"]
    assert full.dtype == torch.float32
    assert torch.equal(full == 0, document_mask(row(), end_id=END))
    assert float(full.min()) == torch.finfo(torch.float32).min
    selected = layer_masks(made(FAMILIES["llama"]), row(), end_id=END)
    assert isinstance(selected, torch.Tensor)
    assert selected.dtype == torch.bool


def test_a_state_that_no_mask_stops_and_an_attention_without_masks_are_refused() -> None:
    with pytest.raises(
        RecipeError,
        match=r"MambaForCausalLM has layers of linear_attention that no mask keeps .*without --document-mask",
    ):
        hidden_states(made(FAMILIES["mamba"]), row(), end_id=END)
    model = made(FAMILIES["llama"])
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(RecipeError, match=r"uses the attention 'flash_attention_2', which takes no mask"):
        hidden_states(model, row(), end_id=END)
