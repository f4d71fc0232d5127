"""What the package carries: a bilingual text sample, and the nano teacher with its tokenizer. Origins: NOTICE."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["sample_path", "teacher_path", "tokenizer_path"]


def sample_path() -> Path:
    """The text sample: zstd-compressed JSON lines `{"text": ..., "source": ...}`, English and Chinese."""
    return _asset("sample.jsonl.zst")


def teacher_path() -> Path:
    """The nano teacher as a Hugging Face model directory (config, weights, tokenizer)."""
    return _asset("teacher")


def tokenizer_path() -> Path:
    """The `tokenizer.json` that the nano teacher reads: bilingual byte-level BPE of 2,048 words."""
    return _asset("teacher/tokenizer.json")


def _asset(name: str) -> Path:
    # Wheels are always unpacked on disk, and the readers below take paths: no zip imports here.
    return Path(str(files(__name__))) / name
