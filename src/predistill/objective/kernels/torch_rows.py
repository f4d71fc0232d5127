"""The primitive in torch operations, in place: for any device, and for the CPU the fast one.

Passes over [C, V] beside the three matrix products: two reductions and a fused softmax; where more than the plain
log-sum-exp is read, the passes run over a few rows at a time, which stay in cache.

C positions  V vocabulary  J columns: the target's ids, then the label
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from predistill.objective.kernels.reading import (
    Reads,
    Scratch,
    Student,
    column,
    kept_gradient,
    mask_kept_,
    outside_weights,
    with_kept,
)

__all__ = ["Reading", "block_rows", "deviation", "read_", "write_gradient_"]

BLOCK_BYTES = 4 << 20  # of logits: measured best from 2 to 8 MiB, twice as fast as whole chunks for tempered losses


class Reading(NamedTuple):
    """What was read, and the softmaxes that make the gradient; where ids are kept, both only outside of those."""

    student: Student
    ids_CJ: Tensor
    reads: Reads
    softmax_CV: Tensor  # where the logits were
    outside_C: Tensor | None  # log-sum-exp outside the kept ids at temperature 1
    tempered_CV: Tensor | None
    logit_CV: Tensor | None
    slope_CV: Tensor | None


def block_rows(vocabulary: int, device: torch.device) -> int | None:
    """How many positions to read at once where several passes are made over them; None: all of a chunk."""
    return max(1, BLOCK_BYTES // (4 * vocabulary)) if device.type == "cpu" else None


def deviation(logit_CV: Tensor, scratch: Scratch, *, softcap: float | None = None) -> Tensor:
    """The population standard deviation [C] of logits, capped first; they stay as they are."""
    centred_CV = scratch("tempered", logit_CV)
    if softcap is not None:
        logit_CV = torch.div(logit_CV, softcap, out=centred_CV).tanh_().mul_(softcap)
    torch.sub(logit_CV, logit_CV.mean(dim=1, keepdim=True), out=centred_CV)
    norm_C: Tensor = torch.linalg.vector_norm(centred_CV, dim=1)
    return norm_C / math.sqrt(logit_CV.shape[1])


def read_(logit_CV: Tensor, ids_CJ: Tensor, reads: Reads, scratch: Scratch, *, softcap: float | None = None) -> Reading:
    """Read the logits, capped first, at ids_CJ (several columns may name one id); the logits are lost.

    What the reading holds lies in `scratch` and is lost with the next reading.
    """
    slope_CV = None if softcap is None else _cap_(logit_CV, scratch("slope", logit_CV), softcap)
    logit_CJ = logit_CV.gather(1, ids_CJ)
    sum_C = logit_CV.sum(dim=1) if reads.total else None
    if reads.kept_CJ is not None:
        mask_kept_(logit_CV, ids_CJ, reads)

    copy_CV = scratch("copy", logit_CV).copy_(logit_CV) if reads.entropy else None
    highest_C = logit_CV.amax(dim=1)
    tempered_CV = lse_tau_C = outside_C = outside_tau_C = entropy_C = None
    if reads.tempered:
        tempered_CV = torch.div(logit_CV, column(reads.tau), out=scratch("tempered", logit_CV))
        lse_tau_C = _softmax_(tempered_CV, highest_C / reads.tau)
    lse_C = _softmax_(logit_CV, highest_C)
    if reads.kept_CJ is not None:
        outside_C, outside_tau_C = lse_C, lse_C if lse_tau_C is None else lse_tau_C
        lse_C = with_kept(logit_CJ, reads, lse_C)
        if lse_tau_C is not None:
            lse_tau_C = with_kept(logit_CJ, reads, lse_tau_C, tau=reads.tau)
    if copy_CV is not None:
        q_CV, lse = (logit_CV, lse_C) if tempered_CV is None or lse_tau_C is None else (tempered_CV, lse_tau_C)
        entropy_C = lse - torch.linalg.vecdot(q_CV, copy_CV) / reads.tau
    student = Student(logit_CJ, lse_C, lse_tau_C, outside_tau_C, entropy_C, sum_C)
    return Reading(student, ids_CJ, reads, logit_CV, outside_C, tempered_CV, copy_CV, slope_CV)


def write_gradient_(reading: Reading, by: Student, *, dtype: torch.dtype | None = None) -> Tensor:
    """Put the gradient of the logits where they were, and return it (in `dtype`, if that is another: elsewhere).

    `by`: the derivatives of f in what was read, None for 0.
    """
    student, reads, gradient_CV = reading.student, reading.reads, reading.softmax_CV
    by_C, by_tau_C, by_CJ = by.lse_N, by.lse_tau_N, by.logit_NJ
    if reads.kept_CJ is not None:
        assert reading.outside_C is not None
        by_CJ = by_CJ + kept_gradient(student, reads, by)
        by_C, by_tau_C = outside_weights(student, by, outside_C=reading.outside_C)
    if reading.logit_CV is not None and by.entropy_N is not None:  # log q_tau + H = z / tau - L_tau + H
        assert student.entropy_N is not None
        lse_C = student.lse_N if student.lse_tau_N is None else student.lse_tau_N
        by_entropy_C = by.entropy_N / reads.tau
        factor_CV = reading.logit_CV.mul_(column(-by_entropy_C / reads.tau))
        factor_CV.add_(column(by_entropy_C * (lse_C - student.entropy_N)))
        if reading.tempered_CV is None:
            gradient_CV.mul_(factor_CV.add_(column(by_C)))
        else:
            gradient_CV.mul_(column(by_C)).addcmul_(factor_CV, reading.tempered_CV)
    # f_L is 1 for every target of mass 1: a pass saved.
    elif bool(((by_C - 1).abs() > 8 * torch.finfo(by_C.dtype).eps).any()):
        gradient_CV.mul_(column(by_C))
    if reading.tempered_CV is not None and by_tau_C is not None:
        gradient_CV.addcmul_(reading.tempered_CV, (by_tau_C / reads.tau)[:, None])
    if by.sum_N is not None:
        gradient_CV.add_(column(by.sum_N))
    gradient_CV.scatter_add_(1, reading.ids_CJ, by_CJ.to(gradient_CV.dtype))
    if reading.slope_CV is not None:
        gradient_CV.mul_(reading.slope_CV)
    return gradient_CV if dtype is None else gradient_CV.to(dtype)


def _cap_(logit_CV: Tensor, slope_CV: Tensor, softcap: float) -> Tensor:
    """Soft cap in place; its slope, 1 - (capped / softcap)^2, into slope_CV."""
    logit_CV.div_(softcap).tanh_()
    torch.mul(logit_CV, logit_CV, out=slope_CV).neg_().add_(1)
    logit_CV.mul_(softcap)
    return slope_CV


def _softmax_(logit_CV: Tensor, highest_C: Tensor) -> Tensor:
    """Softmax in place of logits whose highest are known; returns the log-sum-exp, -inf (and zeros) where there is no
    logit above -inf.

    One fused pass and one reduction; logsumexp and exp would be five passes and two temporaries.
    """
    torch.softmax(logit_CV, dim=1, out=logit_CV)
    lse_C = highest_C - logit_CV.amax(dim=1).log()
    empty_C = highest_C == -torch.inf
    if bool(empty_C.any()):
        logit_CV[empty_C], lse_C[empty_C] = 0.0, -torch.inf
    return lse_C
