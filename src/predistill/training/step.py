"""One optimizer step: forward and backward over the micro-batches of a window, divided once by its counted labels."""

# B rows of a micro-batch  T position  N = B*T  D width
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from predistill.objective import Loss, LossParts, Positions, SparseTargets, Tail, Temperature, linear_distill_loss
from predistill.students.forward import Head, head_of, hidden_states

__all__ = ["MicroBatch", "Objective", "Observer", "StepResult", "train_step"]


@dataclass(frozen=True)
class MicroBatch:
    """Rows of T + 1 tokens, the labels that count (-100 elsewhere), the teacher's targets when there are any, and the
    rows' numbers in their corpus."""

    ids_BT1: torch.Tensor
    label_BT: torch.Tensor
    targets: SparseTargets | None
    rows_B: npt.NDArray[np.int64] | None = None


Observer = Callable[[MicroBatch, Head, torch.Tensor], None]


@dataclass(frozen=True)
class Objective:
    """The recipe's choices of how to learn from a teacher."""

    loss: Loss
    temperature: Temperature
    tail: Tail
    positions: Positions


@dataclass(frozen=True)
class StepResult:
    """Sums of nats over a window's counted labels (kd, kl: over its taught positions), and the gradient norm."""

    total: float
    lm: float
    kd: float
    kl: float
    count: int
    kd_count: int
    grad_norm: float


def train_step(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    window: Iterable[MicroBatch],
    *,
    objective: Objective,
    alpha: float,
    clip: float | None,
    end_id: int | None,
    autocast: torch.autocast,
    observe: Observer | None = None,
) -> StepResult:
    """Update `model` once on `window`; `end_id` is given when attention stays within documents.

    The gradient is that of (sum of nats over the window) / (counted labels of the window), whatever the micro-batches.
    `observe` sees each micro-batch with the head and the last hidden states [B, T, D] (no gradient) that its loss is
    made from, before the update.
    """
    sums = torch.zeros(4, dtype=torch.float64)
    count = kd_count = 0
    for batch in window:
        parts = batch_loss(
            model, batch, objective=objective, alpha=alpha, end_id=end_id, autocast=autocast, observe=observe
        )
        parts.total.backward()
        nats = (parts.total, parts.lm, parts.kd, parts.kl)
        sums += torch.stack(
            [torch.zeros((), dtype=torch.float64) if n is None else n.detach().double().cpu() for n in nats]
        )
        count += int(parts.count)
        kd_count += int(parts.kd_count)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    torch._foreach_mul_(gradients, 1.0 / max(count, 1))
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip if clip is not None else float("inf"))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    total, lm, kd, kl = sums.tolist()
    return StepResult(total, lm, kd, kl, count, kd_count, float(norm))


def batch_loss(
    model: PreTrainedModel,
    batch: MicroBatch,
    *,
    objective: Objective,
    alpha: float,
    end_id: int | None,
    autocast: torch.autocast,
    observe: Observer | None = None,
) -> LossParts:
    """The loss of one micro-batch, as sums over its counted labels."""
    head = head_of(model)
    with autocast:
        hidden_BTD = hidden_states(model, batch.ids_BT1[:, :-1], end_id=end_id)
    if observe is not None:
        observe(batch, head, hidden_BTD.detach())
    return linear_distill_loss(
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
