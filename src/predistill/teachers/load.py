"""Load a teacher: a local Hugging Face directory (safetensors), a finished run, or a .gguf file; nothing remote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from predistill.errors import RunError, TeacherError
from predistill.fingerprint import file_sha256
from predistill.students.build import load_model

__all__ = ["load_teacher", "teacher_facts", "teacher_name"]


def load_teacher(path: str | Path, *, vocab_size: int, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The teacher in evaluation mode, without gradients.

    `vocab_size` is the corpus tokenizer's: a teacher may have more columns (padding, cut off at capture), never fewer.
    """
    where = _model_dir(Path(path))
    try:
        model = load_model(where, device=device, dtype=dtype)
    except RunError as error:
        raise TeacherError(str(error)) from error
    columns = model.get_output_embeddings().weight.shape[0]
    if columns < vocab_size:
        raise TeacherError(
            f"{path}: the teacher has {columns:,} words and the corpus was prepared with {vocab_size:,}. "
            "Prepare the corpus with the teacher's own tokenizer (`predistill prepare --tokenizer`)."
        )
    return model.eval().requires_grad_(False)  # type: ignore[no-any-return]


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
