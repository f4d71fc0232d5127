"""One optimizer step: forward and backward over the micro-batches of a window, divided once by its counted labels."""

# B rows of a micro-batch  T position  N = B*T  D width
from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from predistill.objective import Loss, LossParts, Positions, SparseTargets, Tail, Temperature, linear_distill_loss
from predistill.students.forward import Head
from predistill.training.parallel import own_part, whole
from predistill.training.student import Student
from predistill.world import World

__all__ = ["MicroBatch", "Objective", "Observer", "StepResult", "train_step"]


@dataclass(frozen=True)
class MicroBatch:
    """Rows of T + 1 tokens, the labels that count (-100 elsewhere), the teacher's targets when there are any, and the
    rows' numbers in their corpora."""

    ids_BT1: Tensor
    label_BT: Tensor
    targets: SparseTargets | None
    rows_B: npt.NDArray[np.int64] | None = None


Observer = Callable[[MicroBatch, Head, Tensor], None]


@dataclass(frozen=True)
class Objective:
    """The recipe's choices of how to learn from a teacher."""

    loss: Loss
    temperature: Temperature
    tail: Tail
    positions: Positions


@dataclass(frozen=True)
class StepResult:
    """Sums of nats over the counted labels of a window, over all processes (kd, kl: over its taught positions), and the
    gradient norm. `asked`: how many processes asked for a stop. `updated`: whether the step was taken."""

    total: float
    lm: float
    kd: float
    kl: float
    count: int
    kd_count: int
    grad_norm: float
    asked: int
    updated: bool


def train_step(
    student: Student,
    optimizer: torch.optim.Optimizer,
    window: Iterable[MicroBatch],
    *,
    objective: Objective,
    alpha: float,
    clip: float | None,
    world: World,
    update: bool = True,
    asked: Callable[[], bool] = bool,
    observe: Observer | None = None,
) -> StepResult:
    """Update `student` once on `window`, this process's part of the batch.

    The gradient is that of (sum of nats over the window) / (counted labels of the window), over all processes and
    micro-batches, however many there are. No step is taken where loss or gradient are not finite, nor without `update`.
    `asked()`: whether this process has been asked to stop; the others learn it from the result. `observe` sees each
    micro-batch with the head and the last hidden states [B, T, D] (no gradient) that its loss is made from, before the
    update.
    """
    sums = torch.zeros(7, dtype=torch.float64, device=student.device)
    for batch in window:
        parts = batch_loss(student, batch, objective=objective, alpha=alpha, observe=observe)
        parts.total.backward()
        for i, value in enumerate((parts.total, parts.lm, parts.kd, parts.kl, parts.count, parts.kd_count)):
            if value is not None:
                sums[i] += value.detach()
    sums[6] = float(asked())
    total, lm, kd, kl, count, kd_count, stops = world.sum_(sums).tolist()
    gradients = [own_part(p.grad) for p in student.parameters() if p.grad is not None]
    torch._foreach_mul_(gradients, 1.0 / max(count, 1.0))
    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), math.inf if clip is None else clip)
    grad_norm = float(whole(norm))
    updated = update and math.isfinite(total) and math.isfinite(grad_norm)
    if updated:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(total, lm, kd, kl, int(count), int(kd_count), grad_norm, int(stops), updated)


def batch_loss(
    student: Student, batch: MicroBatch, *, objective: Objective, alpha: float, observe: Observer | None = None
) -> LossParts:
    """The loss of one micro-batch, as sums over its counted labels."""

    def use(head: Head, hidden_BTD: Tensor, router: Tensor | None) -> tuple[Any, ...]:
        if observe is not None:
            observe(batch, head, hidden_BTD.detach())
        parts = linear_distill_loss(
            hidden_BTD.flatten(0, 1),
            head.weight_VD,
            batch.label_BT.flatten(),
            batch.targets,
            alpha=alpha,
            loss=objective.loss,
            temperature=objective.temperature,
            tail=objective.tail,
            positions=objective.positions,
            row_len=batch.label_BT.shape[1],
            bias_V=head.bias_V,
            logit_scale=head.logit_scale,
            softcap=head.softcap,
        )
        # A mean over the micro-batch: times its labels, so that the window's division makes a mean of it again.
        total = parts.total if router is None else parts.total + router * parts.count
        return total, parts.lm, parts.kd, parts.count, parts.kd_count, parts.kl

    return LossParts(*student(batch.ids_BT1[:, :-1], use))
