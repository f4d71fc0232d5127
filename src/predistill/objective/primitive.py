"""The one primitive under every loss (LOSS.md section 1), on a chunk of logits z, in place.

The loss of a position is a function f of its chosen logits z_J and of up to three log-sum-exps: L of z, L_tau of
z / tau, L_out of z outside the kept ids. With the derivatives of f, a few numbers a position, the gradient of all
logits is

    dz = f_L softmax(z) + f_Ltau / tau softmax(z / tau) + f_Lout softmax(z outside) + scatter(f_zJ)

`read_student_` turns the logits into those numbers and softmaxes, `write_gradient_` the softmaxes into dz.
Passes over [C, V] beside the three matrix products: two reductions and a fused softmax; tau costs these again and
two more.

C positions of a chunk  V vocabulary  J columns: the target's ids, then the label
"""

from __future__ import annotations

import torch
from torch import Tensor

from predistill.objective.losses import Student

__all__ = ["read_student_", "write_gradient_"]


def read_student_(
    logit_CV: Tensor, ids_CJ: Tensor, *, tau: float | None, tempered_CV: Tensor | None, kept_CJ: Tensor | None
) -> Student:
    """What a loss reads of the logits, which become softmax(z); outside the kept ids where kept_CJ is given.

    tempered_CV, given with tau, becomes softmax(z / tau). Several columns of ids_CJ may name one id.
    """
    logit_CJ = logit_CV.gather(1, ids_CJ)
    lse_tau_C = None
    if tau is not None:
        assert tempered_CV is not None
        lse_tau_C = _softmax_(torch.div(logit_CV, tau, out=tempered_CV))
    if kept_CJ is None:
        return Student(logit_CJ, _softmax_(logit_CV), lse_tau_C)
    # The mass outside is never 1 - sum q: that is wrong by nats once the student is sure (LOSS.md section 3).
    logit_CV.scatter_add_(1, ids_CJ, torch.zeros_like(logit_CJ).masked_fill_(kept_CJ, -torch.inf))
    lse_outside_C = _softmax_(logit_CV)
    lse_kept_C = logit_CJ.masked_fill(~kept_CJ, -torch.inf).logsumexp(dim=1)
    return Student(logit_CJ, torch.logaddexp(lse_kept_C, lse_outside_C), lse_tau_C, lse_outside_C)


def write_gradient_(
    logit_CV: Tensor,
    ids_CJ: Tensor,
    student: Student,
    by: Student,
    *,
    tau: float | None,
    tempered_CV: Tensor | None,
    kept_CJ: Tensor | None,
) -> None:
    """The gradient of the logits, over what read_student_ left in logit_CV; `by` holds the derivatives of f."""
    by_C, by_CJ = by.lse_N, by.logit_NJ
    if kept_CJ is not None:  # softmax(z) = softmax(z outside) exp(L_out - L) outside, exp(z_J - L) on the kept ids
        assert student.lse_outside_N is not None
        assert by.lse_outside_N is not None
        inside_CJ = by_C[:, None] * (student.logit_NJ - student.lse_N[:, None]).exp()
        by_CJ = by_CJ + inside_CJ.masked_fill_(~kept_CJ, 0.0)
        by_C = by.lse_outside_N + by_C * (student.lse_outside_N - student.lse_N).exp()
    # f_L is 1 for every target of mass 1: a pass saved.
    if bool(((by_C - 1).abs() > 8 * torch.finfo(by_C.dtype).eps).any()):
        logit_CV.mul_(by_C[:, None])
    if tau is not None:
        assert tempered_CV is not None
        assert by.lse_tau_N is not None
        logit_CV.addcmul_(tempered_CV, (by.lse_tau_N / tau)[:, None])
    logit_CV.scatter_add_(1, ids_CJ, by_CJ)


def _softmax_(logit_CV: Tensor) -> Tensor:
    """Softmax in place; returns the log-sum-exp, -inf (and zeros) where there is no logit above -inf.

    One fused pass and two reductions; logsumexp and exp would be five passes and two temporaries.
    """
    highest_C = logit_CV.amax(dim=1)
    torch.softmax(logit_CV, dim=1, out=logit_CV)
    lse_C = highest_C - logit_CV.amax(dim=1).log()
    empty_C = highest_C == -torch.inf
    if bool(empty_C.any()):
        logit_CV[empty_C], lse_C[empty_C] = 0.0, -torch.inf
    return lse_C
