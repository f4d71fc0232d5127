"""An architecture that would be trained as another model than its configuration promises is refused by name."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BambaConfig,
    BertGenerationConfig,
    DogeConfig,
    FalconH1Config,
    HyperCLOVAXConfig,
    Llama4TextConfig,
    PretrainedConfig,
)

from predistill.errors import RecipeError
from predistill.students.check import check_student
from predistill.students.forward import head_of
from tests.students.families import COEFFICIENT, FAMILIES, MIXTURE, SHAPE, made

BAMBA = {**SHAPE, "mamba_d_state": 8, "mamba_d_head": 16, "mamba_n_heads": 4, "attn_layer_indices": [0]}
UNKNOWN: dict[str, tuple[PretrainedConfig, str]] = {
    "a scale of another name": (HyperCLOVAXConfig(**SHAPE, logits_scaling=2.0), r"makes its logits in a way .*report"),
    "a z-loss": (
        BambaConfig(**BAMBA, z_loss_coefficient=0.1),
        r"own loss of BambaForCausalLM differs by .* \(a z-loss",
    ),
    "a router loss of another form": (
        DogeConfig(**MIXTURE, is_moe=True, num_experts=16, moe_intermediate_size=16),
        r"own loss of DogeForCausalLM differs by .*another router loss",
    ),
    "a model that looks ahead": (
        BertGenerationConfig(
            vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
        ),
        r"BertGenerationDecoder, as configured, sees the words it is to predict",
    ),
    "no backbone": (
        Llama4TextConfig(**SHAPE, head_dim=8, num_local_experts=2),
        r"Llama4ForCausalLM has no backbone apart from its head",
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_families_are_known_whole_new_or_trained(name: str) -> None:
    for far in (False, True):
        check_student(made(FAMILIES[name], far=far), end_id=None)


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_not_known_is_refused_though_the_model_is_new(what: str) -> None:
    config, sentence = UNKNOWN[what]
    with pytest.raises(RecipeError, match=sentence):
        check_student(made(config, far=False), end_id=None)


def test_a_softcap_that_is_forgotten_shows_in_a_new_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(FAMILIES["gemma2"], far=False)
    monkeypatch.setattr("predistill.students.check.head_of", lambda _: head_of(made(FAMILIES["llama"], far=False)))
    with pytest.raises(RecipeError, match="makes its logits"):
        check_student(model, end_id=None)


def test_a_router_loss_that_is_forgotten_shows_in_a_new_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(FAMILIES["qwen3-moe"], far=False)
    monkeypatch.setattr("predistill.students.router._coefficient", lambda _: 0.9 * COEFFICIENT)
    with pytest.raises(RecipeError, match=r"own loss of Qwen3MoeForCausalLM differs by 0\.00"):
        check_student(model, end_id=None)


@pytest.mark.parametrize("name", ["bloom", "opt"])
def test_an_architecture_that_reads_masks_in_its_own_way_is_refused_where_documents_are_kept_apart(name: str) -> None:
    with pytest.raises(RecipeError, match=r"takes no mask that keeps documents apart .*without --document-mask"):
        check_student(made(FAMILIES[name]), end_id=5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt2", "qwen3-moe", "gpt-oss", "falcon", "deepseek-v3"])
@pytest.mark.parametrize("end_id", [0, 5, 119])
def test_one_that_keeps_them_apart_is_not(name: str, end_id: int) -> None:
    check_student(made(FAMILIES[name]), end_id=end_id)


def test_checking_leaves_the_model_and_the_random_numbers_as_they_were() -> None:
    model = made(FAMILIES["qwen3-moe"]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    check_student(model, end_id=5)
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_falcon_h1_multiplies_its_logits() -> None:
    config = FalconH1Config(
        **SHAPE, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, lm_head_multiplier=0.25
    )
    model = made(config)
    assert head_of(model).logit_scale == 0.25
    check_student(model, end_id=None)
