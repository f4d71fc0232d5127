"""Nano students of other families: they are built from the recipes' configurations, train, are exported and reload."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from predistill.errors import RecipeError
from predistill.objective import linear_distill_loss
from predistill.students import PRESETS
from predistill.students.build import build_student, student_config
from predistill.students.check import check_student
from predistill.students.export import export_student
from predistill.students.forward import head_of, hidden_states, run

CPU = torch.device("cpu")
STUDENTS = Path(__file__).parents[2] / "recipes" / "nano" / "students"
NANO = sorted(path.name for path in STUDENTS.iterdir())
END, ROW_LEN, VOCABULARY = 0, 96, 300


def student(name: str, *, vocab_size: int = VOCABULARY, row_len: int = ROW_LEN) -> PreTrainedModel:
    config = student_config(str(STUDENTS / name), vocab_size=vocab_size, row_len=row_len, end_id=END)
    return build_student(config, seed=0, device=CPU)


def rows() -> torch.Tensor:
    """Rows [B, T + 1] with documents of various lengths, opened by id 0; longer than the window of 64."""
    row_BT1 = torch.randint(1, VOCABULARY, (4, ROW_LEN + 1), generator=torch.Generator().manual_seed(3))
    row_BT1[:, 0] = row_BT1[0, 80] = row_BT1[1, 7] = END
    return row_BT1


def trained(name: str, *, steps: int) -> tuple[PreTrainedModel, list[float]]:
    model = student(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        hidden, head = run(model, rows()[:, :-1], end_id=END), head_of(model)
        parts = linear_distill_loss(
            hidden.hidden_BTD.flatten(0, 1),
            head.weight_VD,
            rows()[:, 1:].flatten(),
            None,
            alpha=0.0,
            bias_V=head.bias_V,
            logit_scale=head.logit_scale,
            softcap=head.softcap,
        )
        mean = parts.total / parts.count
        losses.append(float(mean.detach()))
        (mean if hidden.router is None else mean + hidden.router).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), losses


def test_the_families_are_those_of_the_recipes() -> None:
    assert NANO == ["gemma", "qwen3-moe"]
    assert student("qwen3-moe").config.model_type == "qwen3_moe"
    assert student("gemma").config.model_type == "gemma2"


@pytest.mark.parametrize("name", NANO)
def test_a_nano_student_is_about_as_large_as_nano_s(name: str) -> None:
    parameters = sum(p.numel() for p in student(name, vocab_size=2048).parameters())
    assert parameters == pytest.approx(PRESETS["nano-s"].parameters(2048), rel=0.05)


@pytest.mark.parametrize("name", NANO)
def test_a_nano_student_is_known_whole(name: str) -> None:
    check_student(student(name), end_id=END)


@pytest.mark.parametrize("name", NANO)
def test_every_weight_learns_and_the_loss_falls(name: str) -> None:
    start = {key: value.clone() for key, value in student(name).state_dict().items()}
    model, losses = trained(name, steps=6)
    assert losses[-1] < losses[0] - 0.1
    assert [key for key, value in model.state_dict().items() if torch.equal(value, start[key])] == []


@pytest.mark.parametrize("name", NANO)
def test_the_exported_student_reloads_in_transformers_with_equal_logits(name: str, tmp_path: Path) -> None:
    model, _ = trained(name, steps=1)
    export_student(model, out=tmp_path / "model", tokenizer=tmp_path, card="")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval().requires_grad_(False)
    input_BT = rows()[:, :-1]
    logits = model(input_BT, use_cache=False).logits.detach()
    assert torch.equal(again(input_BT, use_cache=False).logits, logits)
    assert torch.allclose(
        head_of(again).logits(hidden_states(again, input_BT, end_id=None).flatten(0, 1)),
        logits.flatten(0, 1),
        atol=1e-5,
    )
    assert again.config.pad_token_id is None
    assert (again.config.eos_token_id, again.config.vocab_size) == (END, VOCABULARY)


def test_experts_are_exported_under_the_names_of_the_published_models(tmp_path: Path) -> None:
    model = student("qwen3-moe")
    export_student(model, out=tmp_path / "model", tokenizer=tmp_path, card="")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:  # one tensor an expert, not fused
        names = [name for name in file.keys() if ".experts." in name]  # noqa: SIM118  # it is no mapping
        gate = file.get_tensor("model.layers.1.mlp.experts.3.gate_proj.weight")
    assert len(names) == 2 * 4 * 3
    fused = model.state_dict()["model.layers.1.mlp.experts.gate_up_proj"]
    assert torch.equal(gate, fused[3][: gate.shape[0]])
    assert json.loads((tmp_path / "model" / "config.json").read_text())["router_aux_loss_coef"] == 0.001


@torch.no_grad()
def test_the_softcap_is_in_the_logits_of_the_reloaded_student(tmp_path: Path) -> None:
    model = student("gemma").eval()
    for parameter in model.parameters():
        parameter.data *= 30
    model.save_pretrained(tmp_path)
    logits = AutoModelForCausalLM.from_pretrained(tmp_path)(rows()[:, :-1], use_cache=False).logits
    assert 25.0 < float(logits.abs().max()) <= 30.0


@pytest.mark.parametrize("name", NANO)
def test_no_word_of_the_corpus_is_padding(name: str) -> None:
    model = student(name)
    assert model.get_input_embeddings().padding_idx is None
    assert float(model.get_input_embeddings().weight[0].detach().abs().sum()) > 0


def test_a_context_shorter_than_a_row_is_lengthened_and_a_longer_one_stays(tmp_path: Path) -> None:
    assert student("gemma", row_len=1024).config.max_position_embeddings == 1024
    assert student("gemma", row_len=64).config.max_position_embeddings == 256
    GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=16).save_pretrained(tmp_path)
    config = student_config(str(tmp_path), vocab_size=VOCABULARY, row_len=48, end_id=END)
    model = build_student(config, seed=0, device=CPU)
    assert run(model, rows()[:, :48], end_id=END).hidden_BTD.shape == (4, 48, 32)


def test_a_configuration_that_is_no_causal_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    config = student_config(str(tmp_path), vocab_size=VOCABULARY, row_len=48, end_id=END)
    with pytest.raises(RecipeError, match='Transformers has no causal language model of type "vit"'):
        build_student(config, seed=0, device=CPU)
