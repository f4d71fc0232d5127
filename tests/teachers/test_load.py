"""Loading a teacher: a directory, a run or a .gguf file, frozen; what does not fit is refused in a sentence."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, LlamaConfig, PreTrainedModel

from predistill.assets import teacher_path
from predistill.errors import TeacherError
from predistill.fingerprint import file_sha256
from predistill.runs import Run
from predistill.students.build import DeviceMap
from predistill.students.forward import head_of, hidden_states
from predistill.teachers import load
from predistill.teachers.load import load_teacher, teacher_config, teacher_facts

CPU = torch.device("cpu")
INPUT_BT = torch.arange(24).reshape(2, 12)
SHAPE = LlamaConfig(
    vocab_size=160, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False,
)  # fmt: skip

SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
)  # fmt: skip


def loaded(path: str | Path, vocab_size: int = 160) -> PreTrainedModel:
    return load_teacher(path, vocab_size=vocab_size, device=CPU, dtype=torch.float32)


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return head_of(model).logits(hidden_states(model, INPUT_BT, end_id=None))


def saved(path: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(SHAPE, dtype=torch.float32)
    model.save_pretrained(path)
    return model.eval()


def write_gguf(model: PreTrainedModel, path: Path) -> None:
    """The model as llama.cpp's converter writes it: other names, and query and key rows in its own order."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(SHAPE.max_position_embeddings)
    writer.add_embedding_length(SHAPE.hidden_size)
    writer.add_block_count(SHAPE.num_hidden_layers)
    writer.add_feed_forward_length(SHAPE.intermediate_size)
    writer.add_head_count(SHAPE.num_attention_heads)
    writer.add_head_count_kv(SHAPE.num_key_value_heads)
    writer.add_layer_norm_rms_eps(SHAPE.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(SHAPE.hidden_size // SHAPE.num_attention_heads)
    writer.add_vocab_size(SHAPE.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, SHAPE.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        for part, heads in (("q_proj", SHAPE.num_attention_heads), ("k_proj", SHAPE.num_key_value_heads)):
            if part in name:
                halves = array.reshape(heads, 2, array.shape[0] // heads // 2, array.shape[1])
                array = halves.swapaxes(1, 2).reshape(array.shape)
        written = names.get_name(name, try_suffixes=(".weight",))
        assert written is not None, name
        writer.add_tensor(written, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_directory_is_loaded_frozen_and_in_evaluation(tmp_path: Path) -> None:
    model, teacher = saved(tmp_path / "model"), loaded(tmp_path / "model")
    assert not teacher.training
    assert not [p for p in teacher.parameters() if p.requires_grad]
    with torch.no_grad():
        assert torch.equal(teacher(INPUT_BT).logits, model(INPUT_BT).logits)


def test_a_finished_run_is_a_teacher(pd_run: Run) -> None:
    teacher, model = loaded(pd_run.path, 2048), loaded(pd_run.model_path, 2048)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), model.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore::UserWarning")  # a GGUF's arrays are read-only, and Torch says so
def test_a_gguf_file_is_loaded_with_the_logits_of_the_model_it_was_made_from(tmp_path: Path) -> None:
    model = saved(tmp_path / "model")
    write_gguf(model, tmp_path / "tiny.gguf")
    teacher = loaded(tmp_path / "tiny.gguf")
    with torch.no_grad():
        assert torch.allclose(teacher(INPUT_BT).logits, model(INPUT_BT).logits, atol=1e-5)
    assert teacher_facts(tmp_path / "tiny.gguf") == {
        "name": "tiny.gguf",
        "sha256": [file_sha256(tmp_path / "tiny.gguf")],
    }


@pytest.mark.data
@pytest.mark.skipif("PREDISTILL_GGUF" not in os.environ, reason="$PREDISTILL_GGUF names no .gguf file")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_real_quantised_gguf_file_speaks() -> None:
    teacher = loaded(os.environ["PREDISTILL_GGUF"], 1000)
    with torch.no_grad():
        logit_BTV = teacher(INPUT_BT).logits
    assert bool(logit_BTV.isfinite().all())
    assert float(logit_BTV.std()) > 0.5


def test_more_words_than_the_corpus_are_allowed_and_fewer_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    loaded(tmp_path / "model", 150)
    with pytest.raises(
        TeacherError, match=r"model: the teacher has 160 words .* 1,000.*predistill prepare --tokenizer"
    ):
        loaded(tmp_path / "model", 1000)


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_a_device_map_changes_no_logits(device_map: DeviceMap, tmp_path: Path) -> None:
    model = saved(tmp_path / "model")
    spread = load_teacher(tmp_path / "model", vocab_size=160, device=CPU, dtype=torch.float32, device_map=device_map)
    assert not [p for p in spread.parameters() if p.requires_grad]
    assert torch.equal(logits(spread), logits(model))


def test_a_part_that_stays_on_the_disk_is_read_when_its_module_is_called(tmp_path: Path) -> None:
    model = saved(tmp_path / "model")
    device_map: dict[str, str | int] = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.norm": "cpu"}
    device_map |= {"model.rotary_emb": "cpu", "model.layers.1": "disk", "lm_head": "disk"}
    spread = load_teacher(tmp_path / "model", vocab_size=160, device=CPU, dtype=torch.float32, device_map=device_map)
    head = head_of(spread)
    assert head.weight_VD.device.type == "meta"
    assert not head.plain
    assert torch.equal(logits(spread), logits(model))


def test_two_ways_to_spread_a_teacher_or_one_process_for_many_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    saved(tmp_path / "model")
    spread: dict[str, Any] = {"vocab_size": 160, "device": CPU, "dtype": torch.float32, "tensor_parallel": True}
    with pytest.raises(TeacherError, match=r"Take one\."):
        load_teacher(tmp_path / "model", device_map="auto", **spread)
    with pytest.raises(TeacherError, match=r"torchrun --nproc-per-node 2"):
        load_teacher(tmp_path / "model", **spread)


def test_an_architecture_whose_logits_are_made_in_an_unknown_way_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AutoModelForCausalLM.from_config(
        CohereConfig(**{name: getattr(SHAPE, name) for name in SIZES}, logit_scale=0.25, layer_norm_bias=False)
    ).save_pretrained(tmp_path / "model")
    loaded(tmp_path / "model")
    monkeypatch.setattr(load, "head_of", lambda model: replace(head_of(model), logit_scale=1.0))
    with pytest.raises(TeacherError, match="CohereForCausalLM makes its logits in a way"):
        loaded(tmp_path / "model")


def test_a_teacher_s_configuration_tells_its_words_before_it_is_loaded(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    assert teacher_config(tmp_path / "model", vocab_size=160).vocab_size == 160
    with pytest.raises(TeacherError, match=r"the teacher has 160 words .* 161"):
        teacher_config(tmp_path / "model", vocab_size=161)
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(TeacherError, match="not a Hugging Face configuration"):
        teacher_config(tmp_path / "model", vocab_size=160)


def test_what_is_not_there_or_not_finished_is_said_to_be_so(tmp_path: Path, pd_run: Run) -> None:
    with pytest.raises(TeacherError, match=r"none: no such teacher"):
        loaded(tmp_path / "none")
    shutil.copytree(pd_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("model"))
    with pytest.raises(TeacherError, match=r"run: this run has no exported model yet"):
        loaded(tmp_path / "run")


@pytest.mark.parametrize("files", [{}, {"config.json": "{}"}, {"config.json": '{"model_type": "nothing-known"}'}])
def test_what_is_no_model_is_refused_in_a_sentence(tmp_path: Path, files: dict[str, str]) -> None:
    (tmp_path / "model").mkdir()
    for name, text in files.items():
        (tmp_path / "model" / name).write_text(text)
    with pytest.raises(TeacherError, match=r"model: cannot be loaded as a causal language model: ") as caught:
        loaded(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_refused_in_a_sentence(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(TeacherError, match="cannot be loaded"):
        loaded(tmp_path / "model")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(50))
    with pytest.raises(TeacherError, match="cannot be loaded"):
        loaded(tmp_path / "bad.gguf")


def test_weights_that_lack_a_layer_are_refused_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(TeacherError, match="cannot be loaded"):
        loaded(tmp_path / "model")


def test_a_teacher_s_facts_do_not_depend_on_where_it_lies(tmp_path: Path) -> None:
    saved(tmp_path / "a" / "small")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    facts = teacher_facts(tmp_path / "a" / "small")
    assert facts == teacher_facts(tmp_path / "b" / "small")
    assert facts["name"] == "small"
    assert facts["sha256"] == [file_sha256(tmp_path / "a" / "small" / "model.safetensors")]


def test_the_embedded_teacher_reads_the_embedded_tokenizer_s_words() -> None:
    teacher = loaded(teacher_path(), 2048)
    assert teacher.get_output_embeddings().weight.shape == (2048, 192)
    with torch.no_grad():
        assert bool(teacher(INPUT_BT).logits.isfinite().all())
