"""Building a student: a function of configuration and seed, and nobody else's random numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, PreTrainedModel

from predistill.errors import RecipeError, RunError
from predistill.students.build import build_student, load_model, student_config

CPU = torch.device("cpu")


def built(seed: int) -> PreTrainedModel:
    return build_student(student_config("nano-xs", vocab_size=300, row_len=32, end_id=7), seed=seed, device=CPU)


def test_one_seed_gives_one_model_whatever_was_drawn_before() -> None:
    torch.manual_seed(1)
    first = built(3).state_dict()
    torch.rand(5)
    second, other = built(3).state_dict(), built(4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_building_leaves_the_random_numbers_of_others_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    built(3)
    assert torch.equal(torch.rand(3), expected)


def test_vocabulary_context_and_end_come_from_the_corpus() -> None:
    config = built(0).config
    assert (config.vocab_size, config.max_position_embeddings, config.eos_token_id) == (300, 32, 7)
    assert {p.dtype for p in built(0).parameters()} == {torch.float32}


def test_any_hugging_face_configuration_makes_a_student(tmp_path: Path) -> None:
    Gemma2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, vocab_size=99, query_pre_attn_scalar=16,
    ).save_pretrained(tmp_path)  # fmt: skip
    for name in (tmp_path, tmp_path / "config.json"):
        config = student_config(str(name), vocab_size=300, row_len=32, end_id=7)
        model = build_student(config, seed=0, device=CPU)
        assert model.config.model_type == "gemma2"
        assert model.get_output_embeddings().weight.shape[0] == 300
        assert model.config.eos_token_id == 7


def test_a_student_that_is_none_is_answered_with_the_near_one_and_all() -> None:
    with pytest.raises(RecipeError, match=r'student.preset is "nano-z"; did you mean "nano-.*One of nano-xs, .*config'):
        student_config("nano-z", vocab_size=300, row_len=32, end_id=0)


def test_a_configuration_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(RecipeError, match=r"not a Hugging Face configuration: .*no-such-model"):
        student_config(str(tmp_path), vocab_size=300, row_len=32, end_id=0)


def test_weights_are_read_from_safetensors_only(tmp_path: Path) -> None:
    model = built(0)
    model.save_pretrained(tmp_path / "good")
    again = load_model(tmp_path / "good", device=CPU)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    shutil.copytree(tmp_path / "good", tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(RunError, match=r"pickled: cannot be loaded as a causal language model: .*safetensors"):
        load_model(tmp_path / "pickled", device=CPU)
