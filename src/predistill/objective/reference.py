"""The objective as plain autograd on logits: short, slow, and what the fused head must equal.

N positions  V vocabulary
"""

# ruff: noqa: B008  (the choices are frozen)

from __future__ import annotations

import torch
from torch import Tensor

from predistill.objective.checks import IGNORED, check_labels, checked_alpha, checked_vocabulary
from predistill.objective.kernels.reading import Student, column
from predistill.objective.losses import KLD, Loss
from predistill.objective.positions import All, Positions
from predistill.objective.tail import Renormalise, Tail
from predistill.objective.targets import SparseTargets
from predistill.objective.temperature import Static, Temperature
from predistill.objective.term import Choices, LossParts, distillation_term

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
    vocab_size: int | None = None,
) -> LossParts:
    """The pre-training distillation objective on logits [N, V], summed over positions (arXiv 2410.16215).

    label_N int64, -100 = not counted. targets = None gives the LM loss. alpha, a number or a 0-d tensor in [0, 1], is
    the share of the loss against the teacher. row_len is read by per-row positions only. z_loss * lse^2 is added at
    every counted position (arXiv 2204.02311). Logits of ids from vocab_size on are padding: as if -inf. Raises
    RecipeError for parts that do not go together.
    """
    share = checked_alpha(alpha)
    counted_N = label_N != IGNORED
    vocabulary = checked_vocabulary(vocab_size, logit_NV.shape[1])
    check_labels(label_N[counted_N], vocabulary)
    logit_NV = logit_NV[counted_N, :vocabulary].to(torch.promote_types(logit_NV.dtype, torch.float32))
    lse_N = logit_NV.logsumexp(dim=1)
    lm_N = lse_N - logit_NV.gather(1, label_N[counted_N, None])[:, 0]
    total_N = lm_N + z_loss * lse_N.square()
    count = counted_N.sum()
    if targets is None or share == 0:
        return LossParts(total_N.sum(), lm_N.sum().detach(), None, count, torch.zeros_like(count), None)

    entropy_N = lse_N.new_zeros(len(label_N))
    entropy_N[counted_N] = _entropy(logit_NV.detach())
    choices = Choices(loss, temperature, tail, positions)
    term = distillation_term(
        targets, label_N, choices, vocabulary=vocabulary, row_len=row_len, student_entropy_N=entropy_N
    ).at(counted_N.nonzero()[:, 0])
    reads = term.reads(lambda: logit_NV.detach().std(dim=1, correction=0))
    read = Student(logit_NV.gather(1, term.ids_NJ), lse_N)
    tempered_NV = logit_NV / column(reads.tau)
    if reads.tempered:
        read = read._replace(lse_tau_N=tempered_NV.logsumexp(dim=1))
    if reads.kept_CJ is not None:
        kept_NV = torch.zeros_like(logit_NV).scatter_add(1, term.ids_NJ, reads.kept_CJ.to(logit_NV.dtype)) > 0
        read = read._replace(lse_outside_N=tempered_NV.masked_fill(kept_NV, -torch.inf).logsumexp(dim=1))
    if reads.entropy:
        read = read._replace(entropy_N=_entropy(tempered_NV))
    if reads.total:
        read = read._replace(sum_N=logit_NV.sum(dim=1))
    target = term.target()
    kd_N = term.kd(term.student(read, reads), target)
    kl_N = term.kl(read, target, kd_N)
    alpha_N = alpha * term.distil_N.to(lm_N.dtype)
    total = (total_N + alpha_N * (kd_N - lm_N)).sum()
    kl = None if kl_N is None else kl_N.sum().detach()
    return LossParts(total, lm_N.sum().detach(), kd_N.sum().detach(), count, term.distil_N.sum(), kl)


def _entropy(logit_NV: Tensor) -> Tensor:
    log_q_NV = logit_NV.log_softmax(dim=1)
    return -(log_q_NV.exp() * log_q_NV).sum(dim=1)
