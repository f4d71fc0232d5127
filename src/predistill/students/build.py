"""A student from scratch: a preset or any Hugging Face configuration, initialised from a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.distributed.configuration_utils import DistributedConfig

from predistill.errors import RecipeError, RunError, did_you_mean
from predistill.students.presets import PRESETS, Preset

__all__ = ["DeviceMap", "build_student", "load_model", "load_tokenizer", "read_config", "student_config"]

DeviceMap = str | dict[str, str | int]


def student_config(name: str, *, vocab_size: int, row_len: int, end_id: int) -> PretrainedConfig:
    """The configuration of preset `name`, or of a Hugging Face config.json (file or directory), for a tokenizer.

    `vocab_size`, `row_len` (context, tokens) and `end_id` come from the corpus: they are derived, never asked twice.
    No token is padding: Transformers neither initialises nor trains a padding id's embedding, and Gemma's is 0, which
    is a word of the corpus. A context shorter than a row is lengthened to it.
    """
    if name in PRESETS:
        return _llama_config(PRESETS[name], vocab_size=vocab_size, row_len=row_len, end_id=end_id)
    if not Path(name).exists():
        hint = did_you_mean(name, PRESETS) or "."
        raise RecipeError(
            f'student.preset is "{name}"{hint} One of {", ".join(PRESETS)}, or the path of a Hugging Face config.json.'
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(f"{name}: not a Hugging Face configuration: {_first_line(error)}") from None
    text = config.get_text_config()
    text.vocab_size = vocab_size
    for part in (config, text):
        part.bos_token_id, part.eos_token_id, part.pad_token_id = end_id, end_id, None
    if (getattr(text, "max_position_embeddings", None) or row_len) < row_len:
        text.max_position_embeddings = row_len
    return config


def read_config(path: Path) -> PretrainedConfig:
    """The configuration of a Hugging Face directory, a config.json or a .gguf file. Raises ValueError: why not."""
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(**_source(path), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError((str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")) from None
    return config


def build_student(config: PretrainedConfig, *, seed: int, device: torch.device) -> PreTrainedModel:
    """A freshly initialised causal model in float32; the same seed gives the same weights."""
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise RecipeError(
            f'student.preset: Transformers has no causal language model of type "{config.model_type}". Name the '
            "config.json of one that it has."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.to(device)  # type: ignore[arg-type]  # Transformers declares it for its own wrapper
    return model


def load_model(
    path: Path,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    device_map: DeviceMap | None = None,
    tensor_parallel: bool = False,
) -> PreTrainedModel:
    """A model from a local Hugging Face directory (safetensors), or from a .gguf file.

    It goes to `device`; or, part by part, to where `device_map` says (accelerate's: "auto", or module -> device); or,
    under torchrun, sharded over all ranks by the architecture's own tensor-parallel plan.
    Raises RunError for what is no model, or not all of one: Transformers would make up weights that are not there.
    """
    where = _source(path)
    if path.suffix != ".gguf":
        where["use_safetensors"] = True
    if tensor_parallel:
        where["distributed_config"] = DistributedConfig(tp_plan="auto")
    elif device_map is not None:
        where["device_map"] = device_map
    model: PreTrainedModel
    found: dict[str, Any]
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **where, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be loaded as a causal language model: {_first_line(error)}") from error
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise RunError(
            f"{path}: cannot be loaded as a causal language model: {len(missing)} of its weights are not there "
            f"({missing[0]}). Restore a whole copy."
        )
    if not tensor_parallel and device_map is None:
        model.to(device)  # type: ignore[arg-type]  # as above
    return model


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a local Hugging Face directory, or in a .gguf file. Raises RunError where there is none."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**_source(path), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:  # by what is wrong in it
        reason = _first_line(error)
        raise RunError(f"{path}: no tokenizer that can be loaded: {reason} Put it beside the model.") from None
    return tokenizer


def _source(path: Path) -> dict[str, Any]:
    """How Transformers is told of a directory, or of a .gguf file."""
    if path.suffix == ".gguf":
        return {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    return {"pretrained_model_name_or_path": path}


def _first_line(error: Exception) -> str:
    return f"{str(error).strip().splitlines()[0].rstrip('.')}." if str(error).strip() else f"{type(error).__name__}."


def _llama_config(preset: Preset, *, vocab_size: int, row_len: int, end_id: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=preset.hidden,
        intermediate_size=preset.ffn,
        num_hidden_layers=preset.layers,
        num_attention_heads=preset.heads,
        num_key_value_heads=preset.kv_heads,
        max_position_embeddings=row_len,
        tie_word_embeddings=preset.tied,
        bos_token_id=end_id,
        eos_token_id=end_id,
    )
