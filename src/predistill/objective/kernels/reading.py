"""What is read of a chunk of logits, and what writes their gradient: the one primitive of every loss.

The loss of a position is a function f of a few of its logits z_J and of a few numbers over the vocabulary:
L = lse(z), L_tau = lse(z / tau), L_out = lse outside the kept ids, H = entropy, Z = sum z. With the derivatives of f in
those numbers, q = softmax(z) and q_tau = softmax(z / tau), the gradient of all logits is

    dz = f_L q + f_Ltau / tau q_tau + f_Lout / tau q_tau,out - f_H / tau q_tau (log q_tau + H) + f_Z + scatter(f_zJ)

C positions of a chunk  V vocabulary  J columns: the target's ids, then the label
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Reads", "Scratch", "Student", "column", "kept_gradient", "mask_kept_", "outside_weights", "with_kept"]


class Student(NamedTuple):
    """Numbers of the student's logits z at N positions, or the derivatives of a loss in them; None: not asked for.

    logit_NJ       z at the target's ids and at the label
    lse_N          log sum exp z
    lse_tau_N      log sum exp (z / tau), for the one other temperature that is asked for
    lse_outside_N  log sum exp (z / tau) outside the kept ids (tau = 1 where no other is asked for)
    entropy_N      of softmax(z / tau), nats
    sum_N          sum z over the vocabulary
    """

    logit_NJ: Tensor
    lse_N: Tensor
    lse_tau_N: Tensor | None = None
    lse_outside_N: Tensor | None = None
    entropy_N: Tensor | None = None
    sum_N: Tensor | None = None


class Reads(NamedTuple):
    """Which numbers are asked for beside logit_CJ and lse_C.

    tau is a number for all positions or one a position; 1 asks for nothing. kept_CJ (bool: which columns are kept ids)
    asks for L_out; it goes with neither entropy nor total.
    """

    tau: float | Tensor = 1.0
    kept_CJ: Tensor | None = None
    entropy: bool = False
    total: bool = False

    @property
    def tempered(self) -> bool:
        """Whether another temperature than 1 is asked for."""
        return isinstance(self.tau, Tensor) or self.tau != 1


class Scratch:
    """Room for numbers as many as a block has logits, by name, for all blocks of a call: on a CPU fresh memory costs
    ten times what is written into it."""

    def __init__(self) -> None:
        self._room: dict[str, Tensor] = {}

    def __call__(self, name: str, like_CV: Tensor) -> Tensor:
        """Uninitialised, of the shape of like_CV; what it held under this name is lost."""
        room = self._room.get(name)
        if room is None or len(room) < len(like_CV):
            room = self._room[name] = torch.empty_like(like_CV)
        return room[: len(like_CV)]


def column(value_C: float | Tensor) -> float | Tensor:
    """A number, or one a position as a column beside [C, V]."""
    return value_C[:, None] if isinstance(value_C, Tensor) else value_C


def mask_kept_(logit_CV: Tensor, ids_CJ: Tensor, reads: Reads) -> None:
    """-inf at the kept ids, so that a log-sum-exp is of what lies outside.

    The mass outside is never 1 - sum q: in float32 that is wrong by nats once the student is sure.
    """
    assert reads.kept_CJ is not None
    assert not reads.entropy
    assert not reads.total
    nothing_CJ = torch.zeros(ids_CJ.shape, dtype=logit_CV.dtype, device=logit_CV.device)
    logit_CV.scatter_add_(1, ids_CJ, nothing_CJ.masked_fill_(reads.kept_CJ, -torch.inf))


def with_kept(logit_CJ: Tensor, reads: Reads, lse_C: Tensor, *, tau: float | Tensor = 1.0) -> Tensor:
    """log sum exp (z / tau) over the vocabulary, of lse_C outside the kept ids and the kept logits."""
    assert reads.kept_CJ is not None
    inside_CJ = logit_CJ.masked_fill(~reads.kept_CJ, -torch.inf) / column(tau)
    return torch.logaddexp(inside_CJ.logsumexp(dim=1), lse_C)


def kept_gradient(student: Student, reads: Reads, by: Student) -> Tensor:
    """The softmax part of the gradient of the kept logits [C, J], where softmaxes are at hand outside them only."""
    assert reads.kept_CJ is not None
    inside_CJ = by.lse_N[:, None] * (student.logit_NJ - student.lse_N[:, None]).exp()
    if student.lse_tau_N is not None and by.lse_tau_N is not None:
        q_CJ = (student.logit_NJ / column(reads.tau) - student.lse_tau_N[:, None]).exp()
        inside_CJ = inside_CJ + column(by.lse_tau_N / reads.tau) * q_CJ
    return inside_CJ.masked_fill_(~reads.kept_CJ, 0.0)


def outside_weights(student: Student, by: Student, *, outside_C: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the softmaxes outside the kept ids, at temperature 1 and at tau, are multiplied by (the latter before
    1 / tau): softmax(z) = softmax(z outside) exp(L_out - L). outside_C is L_out at temperature 1."""
    by_C = by.lse_N * (outside_C - student.lse_N).exp()
    by_outside_C = torch.zeros_like(by_C) if by.lse_outside_N is None else by.lse_outside_N
    if student.lse_tau_N is None:
        return by_C + by_outside_C, None
    assert student.lse_outside_N is not None
    if by.lse_tau_N is not None:
        by_outside_C = by_outside_C + by.lse_tau_N * (student.lse_outside_N - student.lse_tau_N).exp()
    return by_C, by_outside_C
