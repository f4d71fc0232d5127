"""One process of several that train together, for test_parallel.py: torchrun starts them, and the first one writes how
far what they do together is from what it does alone.

    torchrun --nproc-per-node 2 tests/training/ranks.py CORPUS STORE OUT.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig, Qwen3MoeConfig

from predistill.corpus import Corpus
from predistill.objective import KLD, All, Renormalise, Static, TopPK
from predistill.store import Store
from predistill.students.build import build_student, student_config
from predistill.teachers.stored import StoredTeacher
from predistill.training.optim import adamw, set_lr
from predistill.training.parallel import parallelised, whole
from predistill.training.step import MicroBatch, Objective, StepResult, train_step
from predistill.training.student import Student
from predistill.world import World, joined

CPU = torch.device("cpu")
OBJECTIVE = Objective(KLD(), Static(), Renormalise(), All())
BATCH_ROWS, STEPS = 8, 50

Maker = Callable[[torch.nn.Module], torch.optim.Optimizer]


class Recorded(torch.optim.SGD):
    """Keeps the gradients that it was asked to follow, and follows none."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        self.seen = [whole(p.grad).clone() for group in self.param_groups for p in group["params"]]


def student(config: PretrainedConfig, world: World, **how: Any) -> Student:
    model = build_student(config, seed=0, device=CPU).train()
    return parallelised(Student(model), world, **how)


def windows(
    corpus: Corpus, teacher: StoredTeacher, world: World, *, micro_rows: int, steps: int
) -> list[list[MicroBatch]]:
    """This process's part of every step. Row 3 has no target; labels that do not count are spread unevenly."""
    found = []
    for step in range(steps):
        rows = (np.arange(BATCH_ROWS) * 7 + step * BATCH_ROWS) % len(corpus)
        mine, window = rows[world.slice_of(BATCH_ROWS)], []
        for part in (mine[i : i + micro_rows] for i in range(0, len(mine), micro_rows)):
            ids, _ = corpus.rows(part)
            label_BT = torch.from_numpy(ids[:, 1:].copy())
            label_BT[part % 3 == 0, : 20 + step % 30] = -100
            window.append(MicroBatch(torch.from_numpy(ids), label_BT, teacher.targets(part, ids)))
        found.append(window)
    return found


def trained(
    built: Student, make: Maker, parts: list[list[MicroBatch]], world: World
) -> tuple[list[StepResult], list[torch.Tensor]]:
    """The results of the steps, and the weights; of an optimizer that only records, the gradients."""
    optimizer = make(built.model)
    results = [
        train_step(built, optimizer, window, objective=OBJECTIVE, alpha=0.7, clip=1.0, world=world) for window in parts
    ]
    if isinstance(optimizer, Recorded):
        return results, optimizer.seen
    return results, [whole(p.detach()).clone() for p in built.model.parameters()]


def apart(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The largest difference of a tensor, relative to its own size."""
    return max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in zip(ours, theirs, strict=True))


def recorded(model: torch.nn.Module) -> torch.optim.Optimizer:
    return Recorded(model.parameters(), lr=0.0)


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def adam(model: torch.nn.Module) -> torch.optim.Optimizer:
    optimizer = adamw(model, betas=(0.9, 0.95), weight_decay=0.1)
    set_lr(optimizer, 3e-3)
    return optimizer


HALF = BATCH_ROWS // 2
# name -> optimizer, steps, and the rows of a micro-batch of the world's and of one process
LAWS: dict[str, tuple[Maker, int, int, int]] = {
    "gradients": (recorded, 1, HALF, BATCH_ROWS),
    "gradients_accumulated": (recorded, 1, 1, BATCH_ROWS),
    "gradients_same_micro_batches": (recorded, 1, HALF, HALF),
    "sgd": (sgd, STEPS, 2, 2),
    "adamw": (adam, STEPS, 2, 2),
}


def compared(
    config: PretrainedConfig, corpus: Corpus, teacher: StoredTeacher, world: World, laws: Sequence[str], **how: Any
) -> dict[str, float]:
    """How far the world is from one process, by each law; the first process says it."""
    alone, found = World(0, 1, CPU), {}
    for law in laws:
        make, steps, ours_rows, their_rows = LAWS[law]
        parts = windows(corpus, teacher, world, micro_rows=ours_rows, steps=steps)
        results, ours = trained(student(config, world, **how), make, parts, world)
        if not world.first:
            continue
        parts = windows(corpus, teacher, alone, micro_rows=their_rows, steps=steps)
        expected, theirs = trained(student(config, alone), make, parts, alone)
        assert [(r.count, r.kd_count) for r in results] == [(r.count, r.kd_count) for r in expected]
        found[law] = apart(ours, theirs)
        losses = [(a.total / a.count, b.total / b.count) for a, b in zip(results, expected, strict=True)]
        found[f"{law}_loss"] = max(abs(a - b) for a, b in losses)
    return found


def main() -> None:
    torch.set_num_threads(1)
    corpus, store, out = Corpus(sys.argv[1]), Store(sys.argv[2]), Path(sys.argv[3])
    teacher = StoredTeacher(store, truncation=TopPK(p=0.95, k=100), device=CPU)
    derived = {"vocab_size": corpus.vocab_size, "row_len": corpus.row_len, "end_id": corpus.end_id}
    tied = student_config("nano-xs", **derived)
    untied = student_config("nano-xs", **derived)
    untied.tie_word_embeddings = False
    experts = Qwen3MoeConfig(
        vocab_size=corpus.vocab_size, hidden_size=32, intermediate_size=64, moe_intermediate_size=32,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=16, num_experts=4,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.1, norm_topk_prob=True, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    with joined(CPU) as world:
        first = ("gradients", "gradients_accumulated", "gradients_same_micro_batches")
        found = {
            "tied": compared(tied, corpus, teacher, world, tuple(LAWS)),
            "untied": compared(untied, corpus, teacher, world, (*first, "sgd")),
            "two copies": compared(tied, corpus, teacher, world, first, shard=1),
            "run again": compared(tied, corpus, teacher, world, first, activation_checkpointing=True),
            "experts": compared(experts, corpus, teacher, world, (first[-1], "adamw")),
        }
        if world.first:
            out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
