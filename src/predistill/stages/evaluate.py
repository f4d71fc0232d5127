"""predistill evaluate: what a student is worth on held-out text; the record goes into the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from predistill.corpus import Corpus
from predistill.errors import RecipeError, RunError
from predistill.evaluation.heldout import measure_heldout
from predistill.files import write_atomic
from predistill.runs import Run, command_line
from predistill.stages.generate import continue_text, exported_model, load_tokenizer
from predistill.stages.inputs import pick_device
from predistill.students.build import load_model
from predistill.students.card import model_card
from predistill.teachers.load import load_teacher, teacher_name

__all__ = ["evaluate"]

PROMPTS = ("The", "他", "")  # empty: the start of a document
SAMPLE_TOKENS = 80


def evaluate(
    run_or_model: str | Path,
    *,
    tasks: str = "heldout",
    corpus: str | Path | None = None,
    teacher: str | Path | None = None,
    limit: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure a finished run or a model directory; a run's record is written to its evaluation.json.

    `corpus` (default: the run's own) gives the held-out rows, `teacher` the model to compare with, `limit` the rows.
    """
    if tasks != "heldout":
        raise RecipeError(f'--tasks is "{tasks}"; this version measures "heldout" only.')
    if limit is not None and limit < 1:
        raise RecipeError(f"--limit {limit}: give at least 1 row.")
    path = Path(run_or_model)
    run = Run(path) if (path / "recipe.yaml").exists() else None
    if corpus is None and run is None:
        raise RunError(f"{path}: a model alone does not name its text. Pass --corpus.")
    heldout = Corpus(corpus or run.recipe["corpus"][0]["path"], split="held_out")  # type: ignore[union-attr]
    if len(heldout) == 0:
        raise RunError(f"{heldout.path}: its held-out split has no whole row. Prepare it with a larger --held-out.")
    model_path, device = exported_model(path), pick_device()
    model = load_model(model_path, device=device).eval()
    words = model.get_output_embeddings().weight.shape[0]
    if words < heldout.vocab_size:
        raise RunError(
            f"{path}: has {words:,} words, the corpus {heldout.vocab_size:,}. Pass a --corpus of its own tokenizer."
        )
    teacher_model = None
    if teacher is not None:
        teacher_model = load_teacher(teacher, vocab_size=heldout.vocab_size, device=device, dtype=torch.float32)
    measured = measure_heldout(model, heldout, teacher=teacher_model, rows=limit, on_progress=on_progress)
    tokenizer, stats = load_tokenizer(model_path), heldout.split_stats
    record = {
        "command": command_line(),
        "heldout": measured.record(
            bytes_per_token=None if heldout.instruct else stats["bytes"] / stats["tokens"],  # of responses not known
            teacher=None if teacher is None else teacher_name(teacher),
        ),
        "samples": [
            {"prompt": prompt, "text": continue_text(model, tokenizer, prompt, tokens=SAMPLE_TOKENS)}
            for prompt in PROMPTS
        ],
    }
    if run is not None:
        run.write_json("evaluation.json", record)
        write_atomic(run.model_path / "README.md", model_card(run.recipe, run.environment, record).encode())
    return record
