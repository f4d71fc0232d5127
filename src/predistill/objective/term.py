"""The distillation term of one recipe on given targets: what it reads of the student, its value, its derivatives.

N positions  C positions of a chunk  V vocabulary  J columns: the target's ids, then the label
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from predistill.errors import RecipeError
from predistill.objective.checks import IGNORED, check_ids
from predistill.objective.combine import check_combination, check_targets
from predistill.objective.kernels.reading import Reads, Student, column
from predistill.objective.losses import KLD, Loss
from predistill.objective.positions import Positions
from predistill.objective.tail import AsSampled, Decoupled, Ghost, Renormalise, Tail, Target
from predistill.objective.targets import SparseTargets
from predistill.objective.temperature import Static, Temperature

__all__ = ["Choices", "LossParts", "Term", "distillation_term"]


@dataclass(frozen=True)
class LossParts:
    """Sums over counted positions (label != -100), as 0-d tensors. Only `total` has a gradient.

    total     nats: (1 - alpha) lm + alpha kd, plus the z-loss; alpha is 0 where a position does not distil
    lm        nats: -log q(label)
    kd        the loss against the teacher over the positions that distil; None without a teacher or with alpha = 0
              (a tensor alpha of 0: 0, with a kd_count of 0)
    count     how many positions are counted
    kd_count  how many of them distil
    kl        nats: KL(teacher || student) at temperature 1 over the positions that distil, the kept entries
              renormalised (sampled: as drawn); None where kd is None, and for sampled targets without entropy
    """

    total: Tensor
    lm: Tensor
    kd: Tensor | None
    count: Tensor
    kd_count: Tensor
    kl: Tensor | None


class Choices(NamedTuple):
    """One choice of each axis that the loss knows of."""

    loss: Loss
    temperature: Temperature
    tail: Tail
    positions: Positions

    @property
    def reads(self) -> tuple[str, ...]:
        """What the loss says it reads beside the usual: "entropy", "total", "square"."""
        names: tuple[str, ...] = self.loss.reads(self.tail) if hasattr(self.loss, "reads") else ()
        return names

    @property
    def outside(self) -> bool:
        """Whether the student's mass outside the kept ids is read."""
        return isinstance(self.tail, Ghost | Decoupled)

    @property
    def squared(self) -> bool:
        """Whether the second temperature is there for sum q^2, not for the student's own."""
        return "square" in self.reads


class Term(NamedTuple):
    """The term over N positions. distil_N bool: where the teacher is listened to. length_N: entries kept."""

    targets: SparseTargets
    label_N: Tensor
    distil_N: Tensor
    length_N: Tensor
    vocabulary: int
    choices: Choices

    def at(self, position_C: Tensor, *, width: int | None = None) -> Term:
        """The term over some of the positions, `width` entries wide (None: as wide as it is)."""
        return self._replace(
            targets=self.targets.select(position_C, width=width),
            label_N=self.label_N[position_C],
            distil_N=self.distil_N[position_C],
            length_N=self.length_N[position_C],
        )

    @property
    def ids_NJ(self) -> Tensor:
        """The ids whose logits are read, int64; padding reads id 0 and has probability 0."""
        return torch.cat((self.targets.columns_NK.clamp(min=0), self.label_N[:, None]), dim=1)

    @property
    def plain(self) -> bool:
        """Whether nothing is read of the student that the LM loss does not read, but a few more logits."""
        return self.choices.temperature.teacher_only and not self.choices.outside and not self.choices.reads

    def reads(self, deviation: Callable[[], Tensor]) -> Reads:
        """What is read of the student's logits; deviation: their standard deviation [N], for who asks."""
        tau = 0.5 if self.choices.squared else self.choices.temperature.student(deviation)
        kept_NJ = None
        if self.choices.outside:
            kept_NK = self.targets.columns_NK >= 0
            if self.targets.logprob_NK is not None:  # an entry of probability 0 is as good as not kept
                kept_NK = kept_NK & (self.targets.logprob_NK > -torch.inf)
            kept_NJ = pad(kept_NK, (0, 1))
        return Reads(tau, kept_NJ, entropy="entropy" in self.choices.reads, total="total" in self.choices.reads)

    def target(self) -> Target:
        """What the student should match."""
        tau = self.choices.temperature.teacher(self.targets)
        return self.choices.tail(self.targets, self.label_N, tau=tau, vocabulary=self.vocabulary)

    def student(self, read: Student, reads: Reads) -> Student:
        """What the loss sees of what was read: the student at its temperature."""
        if self.choices.squared or not reads.tempered:
            return read
        assert read.lse_tau_N is not None
        tau = reads.tau
        logit_NJ = read.logit_NJ / column(tau)
        sum_N = None if read.sum_N is None else read.sum_N / tau
        return Student(logit_NJ, read.lse_tau_N, None, read.lse_outside_N, read.entropy_N, sum_N)

    def kd(self, student: Student, target: Target) -> Tensor:
        """The loss against the teacher [N], 0 where the position does not distil."""
        kd_N = self.choices.loss(student, target)
        return torch.where(self.distil_N, self.choices.temperature.factor(self.targets) * kd_N, 0.0)

    def kd_and_slope(self, read: Student, reads: Reads, target: Target, alpha_N: Tensor) -> tuple[Tensor, Student]:
        """(kd_N, the derivatives of alpha_N kd_N in what was read); alpha_N is 0 where the position does not distil."""
        student = self.student(read, reads)
        slope = getattr(self.choices.loss, "slope", None)
        by = None if slope is None else slope(student, target)
        if by is None:
            return self._by_autograd(read, reads, target, alpha_N)
        factor_N = self.choices.temperature.factor(self.targets) * alpha_N
        tempered = reads.tempered and not self.choices.squared
        # f(z / tau): every logit's and the sum's derivative is divided by tau, the log-sum-exp is the tempered one.
        scale_N = factor_N / reads.tau if tempered else factor_N
        by = Student(
            by.logit_NJ * scale_N[:, None],
            by.lse_N * factor_N,
            _times(by.lse_tau_N, factor_N),
            _times(by.lse_outside_N, factor_N),
            _times(by.entropy_N, factor_N),
            _times(by.sum_N, scale_N),
        )
        if tempered:
            by = by._replace(lse_N=torch.zeros_like(by.lse_N), lse_tau_N=by.lse_N)
        return self.kd(student, target), by

    def kl(self, read: Student, target: Target, kd_N: Tensor) -> Tensor | None:
        """KL [N] of LossParts.kl, None where it is not known; target is what target() gave, kd_N what kd() gave."""
        loss, temperature, tail, _ = self.choices
        if isinstance(tail, AsSampled):
            if target.entropy_N is None:
                return None
            return kd_N if isinstance(loss, KLD) else torch.where(self.distil_N, KLD()(read, target), 0.0)
        if isinstance(loss, KLD) and isinstance(tail, Renormalise) and _is_one(temperature):
            return kd_N
        assert self.targets.logprob_NK is not None
        logprob_NK = self.targets.logprob_NK
        # sum p / P log(p / P / q) of unnormalised p, without another softmax
        prob_NK = logprob_NK.exp().masked_fill_(self.targets.columns_NK < 0, 0.0)
        gap_NK = torch.where(prob_NK > 0, logprob_NK, 0.0) - read.logit_NJ[:, :-1] + read.lse_N[:, None]
        mass_N = prob_NK.sum(dim=1)
        kl_N = torch.linalg.vecdot(prob_NK.to(gap_NK.dtype), gap_NK) / mass_N - mass_N.log()
        return torch.where(self.distil_N, kl_N, 0.0)

    def _by_autograd(self, read: Student, reads: Reads, target: Target, alpha_N: Tensor) -> tuple[Tensor, Student]:
        leaves = Student(*(None if number is None else number.detach().requires_grad_() for number in read))  # type: ignore[arg-type]
        with torch.enable_grad():
            kd_N = self.kd(self.student(leaves, reads), target)
        wanted = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(kd_N, wanted, alpha_N, materialize_grads=True))
        by = Student(*(None if leaf is None else next(found) for leaf in leaves))  # type: ignore[arg-type]
        return kd_N.detach(), by._replace(logit_NJ=by.logit_NJ.clone())  # autograd may give one tensor for two numbers


def distillation_term(
    targets: SparseTargets,
    label_N: Tensor,
    choices: Choices,
    *,
    vocabulary: int,
    row_len: int | None,
    student_entropy_N: Tensor | None = None,
) -> Term:
    """The term; student_entropy_N for positions that ask for it. RecipeError where the parts do not go together."""
    loss, temperature, tail, positions = choices
    check_combination(loss, tail, temperature)
    check_targets(targets, loss=loss, tail=tail, temperature=temperature, positions=positions)
    if len(targets) != len(label_N):
        raise RecipeError(f"{len(targets)} targets for {len(label_N)} labels: give one target for every position.")
    check_ids(targets, vocabulary)
    _check_reads(choices)
    length_N = targets.length_N
    targets = _without_nan(targets, absent_N=length_N == 0)
    able_N = (length_N > 0) & (label_N != IGNORED)
    distil_N = positions(targets, able_N, row_len=row_len, student_entropy_N=student_entropy_N)
    return Term(targets, label_N, distil_N, length_N, vocabulary, choices)


def _check_reads(choices: Choices) -> None:
    """What a loss of one's own may ask for at once; ours ask for nothing else."""
    loss, temperature, tail, _ = choices
    alone = len(choices.reads) == 1 and temperature.teacher_only
    if choices.reads and (choices.outside or (choices.squared and not alone)):
        raise RecipeError(
            f"loss {loss.kind} reads {', '.join(choices.reads)}, which cannot be read with tail {tail.kind} and "
            f"temperature {temperature.kind}: square is read alone, nothing with ghost or decoupled."
        )


def _without_nan(targets: SparseTargets, *, absent_N: Tensor) -> SparseTargets:
    """What stands where there is no target is not read, but 0 times NaN is NaN: 0 in its place."""
    names = ("log_rest_N", "entropy_N", "logit_std_N", "lse_tau_N")
    values = {name: value for name in names if (value := getattr(targets, name)) is not None}
    return replace(targets, **{name: value.masked_fill(absent_N, 0.0) for name, value in values.items()})


def _times(number_N: Tensor | None, by_N: Tensor) -> Tensor | None:
    return None if number_N is None else number_N * by_N


def _is_one(temperature: Temperature) -> bool:
    return isinstance(temperature, Static) and temperature.value == 1
