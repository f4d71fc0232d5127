"""What a distilled training step costs beside the plain one: the reading of its targets included.

    PREDISTILL_GGUF=SmolLM2-135M-Instruct.Q4_1.gguf python benchmarks/step.py

Writes benchmarks/results/step.json. Both students have the same size and see the same rows; a step is what `train`
does: rows, hashes, targets, forward, backward, optimizer. They take turns in one process; `cpu_ratio` is the median
over the rounds of distilled / plain CPU seconds. `read_cpu_ratio` is what of it is fetching the batch, in the training
process (readers: 0). `reader_stall` is the share of wall time that steps wait for their batch when it is read ahead, as
`train` does it by default, and `ahead` the comparison with the plain step then, the reading process's CPU time left
out. Both cases use
KLD at alpha .9, the kept entries renormalised, on a real top-.95-100 store: nano-s on the embedded sample (V 2,048),
taught by the embedded teacher; width 256 and two layers on English encyclopedia text (V 49,152), taught by SmolLM2
135M, left out where $PREDISTILL_GGUF names none.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from paired import ROW_LEN, gguf_teacher, nano_corpus, paired, seconds_of, smollm2_corpus
from record import write_record
from transformers import LlamaConfig

from predistill.assets import teacher_path
from predistill.corpus import Corpus
from predistill.memory import keep_freed_memory
from predistill.objective import TopPK
from predistill.recipe import Recipe, read_recipe
from predistill.stages.batches import Batches  # the very reader of `train`, not one that resembles it
from predistill.stages.capture import capture
from predistill.stages.inputs import open_inputs, pick_device
from predistill.students.build import build_student
from predistill.teachers.prefetch import default_workers
from predistill.training.optim import adamw, set_lr
from predistill.training.step import train_step

WIDE = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 2, "num_attention_heads": 4}


def main() -> None:
    keep_freed_memory()  # as the program does
    gguf = gguf_teacher()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpus = nano_corpus(folder / "nano", text_bytes=64_000)
        cases = {"nano-s, V 2,048": measured(corpus, teacher_path(), "nano-s", folder, batch_rows=16, rounds=60)}
        if gguf is not None:
            LlamaConfig(**WIDE, tie_word_embeddings=True, max_position_embeddings=ROW_LEN).save_pretrained(folder)
            corpus = smollm2_corpus(folder / "smollm2", text_bytes=20_000)
            cases["width 256, V 49,152"] = measured(corpus, gguf, str(folder), folder, batch_rows=8, rounds=8)
    note = {} if gguf is not None else {"note": "V 49,152 left out: $PREDISTILL_GGUF names no file."}
    write_record("step", {"threads": torch.get_num_threads(), "cases": cases, **note})


def measured(
    corpus: Corpus, teacher: Path, student: str, folder: Path, *, batch_rows: int, rounds: int
) -> dict[str, Any]:
    store = folder / f"{corpus.path.name}-store"
    totals = capture(teacher, corpus=corpus.path, out=store, truncation=TopPK(p=0.95, k=100)).totals
    plain, plain_batches = step_of(recipe_of(corpus, None, student, batch_rows=batch_rows))
    distilled, batches = step_of(recipe_of(corpus, store, student, batch_rows=batch_rows, readers=0))
    result = paired(plain, distilled, rounds=rounds)
    read_plain, read_distilled = (
        statistics.median(seconds_of(lambda i: list(read.window(i)), i)[0] for i in range(20))  # noqa: B023
        for read in (plain_batches, batches)
    )
    ahead, ahead_batches = step_of(recipe_of(corpus, store, student, batch_rows=batch_rows))
    with ahead_batches:
        ahead(0)  # the process that reads has started
        waited, seconds = ahead_batches.stall_seconds, 0.0

        def counted(number: int) -> None:
            nonlocal seconds
            seconds += seconds_of(ahead, number)[1]

        compared = paired(plain, counted, rounds=rounds)
        stall = (ahead_batches.stall_seconds - waited) / seconds
    return {
        "teacher": teacher.name,
        "entries_a_position": round(totals["entries"] / totals["positions"], 2),
        "batch_tokens": batch_rows * corpus.row_len,
        **result,
        "read_cpu_ratio": round((read_distilled - read_plain) / result["plain_cpu_seconds"], 3),
        "reader_stall": round(stall, 4),
        "ahead": {"readers": default_workers()}
        | {name: compared[name] for name in ("cpu_ratio", "wall_ratio", "plain_seconds", "seconds")},
    }


def step_of(recipe: Recipe) -> tuple[Callable[[int], object], Batches]:
    """The function that makes step i of a recipe's training, and what it reads."""
    inputs, device = open_inputs(recipe), pick_device()
    model = build_student(inputs.config, seed=recipe.seed, device=device).train()
    optimizer = adamw(model, betas=recipe.optimizer.betas, weight_decay=recipe.optimizer.weight_decay)
    set_lr(optimizer, 1e-3)
    batches = Batches(recipe, inputs, device)

    def step(number: int) -> None:
        train_step(
            model, optimizer, batches.window(number), objective=batches.objective, alpha=0.9 if inputs.stores else 0.0,
            clip=recipe.optimizer.clip, end_id=batches.end_id, autocast=batches.autocast,
        )  # fmt: skip

    return step, batches


def recipe_of(
    corpus: Corpus, store: Path | None, student: str, *, batch_rows: int, readers: int | None = None
) -> Recipe:
    return read_recipe(
        {
            "corpus": [{"path": str(corpus.path), "store": None if store is None else str(store)}],
            "student": {"preset": student},
            "teacher": {"kind": "none" if store is None else "stored"},
            "lr": {"kind": "constant", "value": 1e-3},
            "tokens": "1M",
            "batch_tokens": batch_rows * corpus.row_len,
            "micro_batch_rows": batch_rows,
            "readers": readers,
        }
    )


if __name__ == "__main__":
    main()
