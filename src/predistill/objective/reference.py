"""The objective as plain autograd on logits: short, slow, and what the fused head must equal.

N positions  V vocabulary
"""

# ruff: noqa: B008  (the choices are frozen)

from __future__ import annotations

import torch
from torch import Tensor

from predistill.objective.losses import KLD, Loss, Student
from predistill.objective.positions import All, Positions
from predistill.objective.tail import Renormalise, Tail
from predistill.objective.targets import SparseTargets
from predistill.objective.temperature import Static, Temperature
from predistill.objective.term import IGNORED, LossParts, distillation_term

__all__ = ["distill_loss"]


def distill_loss(
    logit_NV: Tensor,
    label_N: Tensor,
    targets: SparseTargets | None = None,
    *,
    alpha: float | Tensor = 1.0,
    loss: Loss = KLD(),
    temperature: Temperature = Static(),
    tail: Tail = Renormalise(),
    positions: Positions = All(),
    row_len: int | None = None,
    z_loss: float = 0.0,
) -> LossParts:
    """The pre-training distillation objective on logits [N, V], summed over positions (PAPER section 1).

    label_N int64, -100 = not counted. targets = None gives the LM loss. alpha, a number or a 0-d tensor in [0, 1], is
    the share of the loss against the teacher. row_len is read by per-row positions only. z_loss * lse^2 is added at
    every counted position (arXiv 2204.02311). Raises RecipeError for parts that do not go together.
    """
    term = distillation_term(
        targets,
        label_N,
        vocabulary=logit_NV.shape[1],
        alpha=alpha,
        loss=loss,
        temperature=temperature,
        tail=tail,
        positions=positions,
        row_len=row_len,
    )
    counted_N = label_N != IGNORED
    logit_NV, label_N = logit_NV[counted_N], label_N[counted_N]
    lse_N = logit_NV.logsumexp(dim=1)
    lm_N = lse_N - logit_NV.gather(1, label_N[:, None])[:, 0]
    count = counted_N.sum()
    if term is None:
        total = (lm_N + z_loss * lse_N.square()).sum()
        return LossParts(total, lm_N.sum().detach(), None, count, torch.zeros_like(count), None)

    term = term.at(counted_N)
    target, ids_NJ = term.target(), term.ids_NJ
    student = Student(logit_NV.gather(1, ids_NJ), lse_N)
    if term.tau is not None:
        student = student._replace(lse_tau_N=(logit_NV / term.tau).logsumexp(dim=1))
    if term.kept_NJ is not None:
        kept_NV = torch.zeros_like(logit_NV).scatter_add(1, ids_NJ, term.kept_NJ.to(logit_NV.dtype)) > 0
        student = student._replace(lse_outside_N=logit_NV.masked_fill(kept_NV, -torch.inf).logsumexp(dim=1))
    kd_N = term.kd(student, target)
    total = (term.mix(lm_N, kd_N) + z_loss * lse_N.square()).sum()
    kl_N = term.kl(student, target, kd_N)
    kl = None if kl_N is None else kl_N.sum().detach()
    return LossParts(total, lm_N.sum().detach(), kd_N.sum().detach(), count, term.distil_N.sum(), kl)
