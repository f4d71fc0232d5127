"""The one primitive under every loss (LOSS.md section 1), on a chunk of logits z, in place.

The loss of a position is a function f of its chosen logits z_J and of up to three log-sum-exps: L of z, L_tau of
z / tau, L_out of z outside the kept ids. With the derivatives of f, a few numbers a position, the gradient of all
logits is

    dz = f_L softmax(z) + f_Ltau / tau softmax(z / tau) + f_Lout softmax(z outside) + scatter(f_zJ)

`read_` turns the logits into those numbers and softmaxes, `write_gradient_` the softmaxes into dz. Passes over [C, V]
beside the three matrix products: two reductions and a fused softmax; tau costs four more (other than 2 and 1/2: six).

C positions of a chunk  V vocabulary  J columns: the target's ids, then the label
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from predistill.objective.losses import Student

__all__ = ["Reading", "read_", "write_gradient_"]


class Reading(NamedTuple):
    """The numbers that a loss reads of a chunk, and what is needed to turn its derivatives in them into a gradient.

    softmax_CV lies where the logits were: softmax(z), outside the kept ids where those are asked for. tempered_CV is
    softmax(z / tau) times tempered_mass_C.
    """

    student: Student
    softmax_CV: Tensor
    ids_CJ: Tensor
    kept_CJ: Tensor | None
    tau: float | None
    tempered_CV: Tensor | None
    tempered_mass_C: Tensor | None


def read_(
    logit_CV: Tensor,
    ids_CJ: Tensor,
    *,
    tau: float | None = None,
    tempered_CV: Tensor | None = None,
    kept_CJ: Tensor | None = None,
) -> Reading:
    """Read the logits at ids_CJ (several columns may name one id) and their log-sum-exps; the logits are lost.

    With tau, tempered_CV is room for as many numbers as there are logits. kept_CJ asks for L_out: bool, which columns
    are kept ids.
    """
    logit_CJ = logit_CV.gather(1, ids_CJ)
    lse_tau_C = lse_outside_C = mass_C = None
    if tau not in (None, 2.0, 0.5):
        assert tempered_CV is not None
        lse_tau_C = _softmax_(torch.div(logit_CV, tau, out=tempered_CV))
        mass_C = torch.ones_like(lse_tau_C)
    if kept_CJ is None:
        lse_C = _softmax_(logit_CV)
    else:
        # The mass outside is never 1 - sum q: that is wrong by nats once the student is sure (LOSS.md section 3).
        logit_CV.scatter_add_(1, ids_CJ, torch.zeros_like(logit_CJ).masked_fill_(kept_CJ, -torch.inf))
        lse_outside_C = _softmax_(logit_CV)
        lse_C = torch.logaddexp(logit_CJ.masked_fill(~kept_CJ, -torch.inf).logsumexp(dim=1), lse_outside_C)
    if tau in (2.0, 0.5):  # a square root or a square of softmax(z) is cheaper than exponentials, and loses < 1e-18
        assert tempered_CV is not None
        assert kept_CJ is None, "softmax(z) is not whole"
        mass_C = torch.pow(logit_CV, 1 / tau, out=tempered_CV).sum(dim=1)
        lse_tau_C = lse_C / tau + mass_C.log()
    return Reading(
        Student(logit_CJ, lse_C, lse_tau_C, lse_outside_C), logit_CV, ids_CJ, kept_CJ, tau, tempered_CV, mass_C
    )


def write_gradient_(reading: Reading, by: Student) -> None:
    """Put the gradient of the logits where they were; `by` holds the derivatives of f in the numbers of the reading."""
    student, softmax_CV, kept_CJ = reading.student, reading.softmax_CV, reading.kept_CJ
    by_C, by_CJ = by.lse_N, by.logit_NJ
    if kept_CJ is not None:  # softmax(z) = softmax(z outside) exp(L_out - L) outside, exp(z_J - L) on the kept ids
        assert student.lse_outside_N is not None
        assert by.lse_outside_N is not None
        inside_CJ = by_C[:, None] * (student.logit_NJ - student.lse_N[:, None]).exp()
        by_CJ = by_CJ + inside_CJ.masked_fill_(~kept_CJ, 0.0)
        by_C = by.lse_outside_N + by_C * (student.lse_outside_N - student.lse_N).exp()
    # f_L is 1 for every target of mass 1: a pass saved.
    if bool(((by_C - 1).abs() > 8 * torch.finfo(by_C.dtype).eps).any()):
        softmax_CV.mul_(by_C[:, None])
    if reading.tau is not None:
        assert by.lse_tau_N is not None
        assert reading.tempered_CV is not None
        assert reading.tempered_mass_C is not None
        softmax_CV.addcmul_(reading.tempered_CV, (by.lse_tau_N / reading.tau / reading.tempered_mass_C)[:, None])
    softmax_CV.scatter_add_(1, reading.ids_CJ, by_CJ)


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
