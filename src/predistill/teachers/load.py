"""Load a teacher: a local Hugging Face directory (safetensors), a finished run, or a .gguf file; nothing remote."""

# T position  N positions  D width  V vocabulary
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel

from predistill.errors import RunError, TeacherError
from predistill.fingerprint import file_sha256
from predistill.students.build import DeviceMap, load_model, read_config
from predistill.students.forward import head_of, hidden_states

__all__ = ["DTYPES", "load_teacher", "sharded", "teacher_config", "teacher_facts", "teacher_name"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HEAD_TOLERANCE = 0.05  # of the logits' standard deviation: bfloat16 stays below .01, a forgotten scale is far above


def load_teacher(
    path: str | Path,
    *,
    vocab_size: int,
    device: torch.device,
    dtype: torch.dtype,
    device_map: DeviceMap | None = None,
    tensor_parallel: bool = False,
) -> PreTrainedModel:
    """The teacher in evaluation mode, without gradients.

    `vocab_size` is the corpus tokenizer's: a teacher may have more columns (padding, cut off at capture), never fewer.
    One too large for `device`: `device_map` (accelerate's; "auto" spreads it over the devices and the processor's
    memory), or `tensor_parallel`, where all ranks of a torchrun hold a share (gloo on CPU, nccl on CUDA) and have to
    run the same batches (`LiveTeacher.follow`). Raises TeacherError.
    """
    where = _model_dir(Path(path))
    if tensor_parallel and device_map is not None:
        raise TeacherError(f"{path}: a device map and tensor parallelism are two ways to spread a teacher. Take one.")
    if tensor_parallel and "WORLD_SIZE" not in os.environ:
        raise TeacherError(
            f"{path}: a tensor-parallel teacher needs several processes. Run the command under `torchrun "
            "--nproc-per-node 2` (or more)."
        )
    try:
        model = load_model(where, device=device, dtype=dtype, device_map=device_map, tensor_parallel=tensor_parallel)
    except RunError as error:
        raise TeacherError(str(error)) from error
    if tensor_parallel and not sharded(model):
        raise TeacherError(
            f"{path}: Transformers has no tensor-parallel plan for {type(model).__name__}. Use a device map."
        )
    _check_columns(path, model.get_output_embeddings().weight.shape[0], vocab_size)
    model.eval().requires_grad_(False)
    _check_head(path, model)
    return model


def sharded(model: PreTrainedModel) -> bool:
    """Whether every rank holds a share of the weights (tensor parallelism): then all have to run together."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def teacher_config(path: str | Path, *, vocab_size: int) -> PretrainedConfig:
    """The teacher's configuration, without its weights: to refuse it, or to count what it costs, before it is loaded.

    Raises TeacherError where there is none, and for fewer words than the corpus's `vocab_size`.
    """
    where = _model_dir(Path(path))
    try:
        config = read_config(where)
    except ValueError as reason:
        raise TeacherError(f"{path}: not a Hugging Face configuration: {reason}.") from None
    _check_columns(path, config.get_text_config().vocab_size, vocab_size)
    return config


def teacher_facts(path: str | Path) -> dict[str, Any]:
    """Name and SHA-256 of the weights, for a store's manifest; the name is the last part of the path, so that moving
    a teacher changes nothing."""
    where = _model_dir(Path(path))
    weights = [where] if where.is_file() else sorted(where.glob("*.safetensors"))
    return {"name": teacher_name(path), "sha256": [file_sha256(file) for file in weights]}


def teacher_name(path: str | Path) -> str:
    """What a teacher is called in records: the last part of its path, or the run's when it is a run's model."""
    path = Path(path)
    return path.parent.name if path.name == "model" else path.name


def _model_dir(path: Path) -> Path:
    if not path.exists():
        raise TeacherError(f"{path}: no such teacher. Name a Hugging Face directory, a .gguf file, or a finished run.")
    if (path / "recipe.yaml").exists():
        if not (path / "model").is_dir():
            raise TeacherError(f"{path}: this run has no exported model yet. Let `predistill train` finish it first.")
        return path / "model"
    return path


def _check_columns(path: str | Path, columns: int, vocab_size: int) -> None:
    if columns < vocab_size:
        raise TeacherError(
            f"{path}: the teacher has {columns:,} words and the corpus was prepared with {vocab_size:,}. "
            "Prepare the corpus with the teacher's own tokenizer (`predistill prepare --tokenizer`)."
        )


@torch.inference_mode()
def _check_head(path: str | Path, model: PreTrainedModel) -> None:
    """An architecture may do more between its last product and its logits than `head_of` knows; a few words tell."""
    input_1T = torch.arange(8, device=model.device)[None]
    theirs_NV = model(input_ids=input_1T, use_cache=False).logits[0].float()
    ours_NV = head_of(model).logits(hidden_states(model, input_1T, end_id=None)[0])[:, : theirs_NV.shape[1]]
    difference_NV = ours_NV.to(theirs_NV.device) - theirs_NV
    difference_NV -= difference_NV.mean(dim=1, keepdim=True)
    if float(difference_NV.square().mean().sqrt()) > HEAD_TOLERANCE * float(theirs_NV.std(dim=1).mean()):
        raise TeacherError(
            f"{path}: {type(model).__name__} makes its logits in a way that predistill does not know (beyond a scale "
            "and a softcap), so its targets would be wrong. Please report it; until then use another teacher."
        )
