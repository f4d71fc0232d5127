"""Small recipes and models that several rooms test with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from predistill.runs import Run
from predistill.training.student import Student
from predistill.world import World

DOCUMENTS, LETTERS, ROW_LEN = 60, 900, 64
STEPS, BATCH_ROWS = 40, 8
ALONE = World(0, 1, torch.device("cpu"))
CLOCK = ("seconds", "tokens_per_s", "stall_s")  # all else in a metrics line is a function of the recipe


def recipe_content(corpus: Path, store: Path | str | None = None, /, **changes: Any) -> dict[str, Any]:
    """A recipe of 40 steps: 8 rows each, in micro-batches of 4, half a second of work."""
    return {
        "name": "tiny",
        "corpus": [{"path": str(corpus), "store": None if store is None else str(store)}],
        "student": {"preset": "nano-xs"},
        "teacher": {"kind": "none" if store is None else "stored"},
        "truncation": {"kind": "top_p_k", "p": 0.95, "k": 100},
        "temperature": {"kind": "static", "value": 1.0},
        "tail": {"kind": "renormalise"},
        "loss": {"kind": "kld"},
        "alpha": {"kind": "wsd", "peak": 0.9, "warmup_frac": 0.1, "decay_frac": 0.1},
        "lr": {"kind": "wsd", "peak": 1e-2, "warmup_frac": 0.1, "decay_frac": 0.2, "floor": 0.1},
        "tokens": STEPS * BATCH_ROWS * ROW_LEN,
        "batch_tokens": BATCH_ROWS * ROW_LEN,
        "micro_batch_rows": 4,
        "readers": 0,
        "evaluate_every": 15,
        "checkpoint_every": 7,
    } | changes


def in_training(model: PreTrainedModel, *, end_id: int | None = None) -> Student:
    """A model as the step takes it, in float32."""
    return Student(model, end_id=end_id)


def timeless(run: Run) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock wrote."""
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in run.metrics()]


def weights(run: Run) -> bytes:
    """The exported student's weights."""
    return (run.model_path / "model.safetensors").read_bytes()


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by name; empty where there is no folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """Standard error in one line."""
        return " ".join(self.err.split())
