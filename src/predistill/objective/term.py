"""The distillation term of one recipe on given targets: what it reads of the student, its value, its share of the loss.

N positions  V vocabulary  J columns: the target's ids, then the label
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from predistill.errors import RecipeError
from predistill.objective.combine import check_combination, refusal_of_targets
from predistill.objective.losses import KLD, MSE, Loss, Student
from predistill.objective.positions import Positions
from predistill.objective.tail import AsSampled, Ghost, Renormalise, Tail, Target
from predistill.objective.targets import SparseTargets
from predistill.objective.temperature import Temperature

__all__ = ["IGNORED", "LossParts", "Term", "distillation_term"]

IGNORED = -100  # the field's label for "not counted"


@dataclass(frozen=True)
class LossParts:
    """Sums over counted positions (label != -100), as 0-d tensors. Only `total` has a gradient.

    total     nats: (1 - alpha) lm + alpha kd, plus the z-loss; alpha is 0 where a position does not distil
    lm        nats: -log q(label)
    kd        the loss against the teacher over the positions that distil; None without a teacher or with alpha = 0
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


class Term(NamedTuple):
    """The term over N positions. distil_N bool: where the teacher is listened to. length_N: entries kept."""

    targets: SparseTargets
    label_N: Tensor
    distil_N: Tensor
    length_N: Tensor
    alpha: float | Tensor
    loss: Loss
    temperature: Temperature
    tail: Tail

    def at(self, position_C: Tensor) -> Term:
        """The term over some of the positions, as wide as the longest of them."""
        length_C = self.length_N[position_C]
        return self._replace(
            targets=self.targets.select(position_C, width=int(length_C.max()) if len(length_C) else 0),
            label_N=self.label_N[position_C],
            distil_N=self.distil_N[position_C],
            length_N=length_C,
        )

    @property
    def ids_NJ(self) -> Tensor:
        """The ids whose logits are read, int64; padding reads id 0 and has probability 0."""
        return torch.cat((self.targets.ids_NK.clamp(min=0), self.label_N[:, None]), dim=1)

    @property
    def kept_NJ(self) -> Tensor | None:
        """Which columns are kept ids, for Student.lse_outside_N; None when that is not read."""
        return pad(self.targets.ids_NK >= 0, (0, 1)) if isinstance(self.tail, Ghost) else None

    @property
    def tau(self) -> float | None:
        """The temperature of Student.lse_tau_N, None when that is not read."""
        if isinstance(self.loss, MSE):
            return 0.5 if self.loss.space == "probs" else None
        return self.temperature.student_value if self.temperature.student_value != 1 else None

    def target(self) -> Target:
        """What the student should match."""
        return self.tail(self.targets, self.label_N, temperature=self.temperature.value)

    def kd(self, student: Student, target: Target) -> Tensor:
        """The loss against the teacher [N], 0 where the position does not distil; differentiable in the student."""
        tau = self.temperature.student_value
        if tau != 1:
            assert student.lse_tau_N is not None
            student = Student(student.logit_NJ / tau, student.lse_tau_N)
        return torch.where(self.distil_N, tau**2 * self.loss(student, target), 0.0)

    def mix(self, lm_N: Tensor, kd_N: Tensor) -> Tensor:
        """(1 - alpha) lm + alpha kd [N], with alpha = 0 where the position does not distil."""
        alpha_N = self.distil_N.to(lm_N.dtype) * self.alpha
        return (1 - alpha_N) * lm_N + alpha_N * kd_N

    def kl(self, student: Student, target: Target, kd_N: Tensor) -> Tensor | None:
        """KL [N] of LossParts.kl, None where it is not known; target is what target() gave, kd_N what kd() gave."""
        if self.temperature.value == 1 and isinstance(self.tail, Renormalise | AsSampled):
            if isinstance(self.loss, KLD):
                return kd_N
        else:
            target = Renormalise()(self.targets, self.label_N, temperature=1.0)
        if target.entropy_N is None:
            return None
        return torch.where(self.distil_N, KLD()(student, target), 0.0)


def distillation_term(
    targets: SparseTargets | None,
    label_N: Tensor,
    *,
    vocabulary: int,
    alpha: float | Tensor,
    loss: Loss,
    temperature: Temperature,
    tail: Tail,
    positions: Positions,
    row_len: int | None,
) -> Term | None:
    """The term, or None where the LM loss is all: no targets, or alpha = 0."""
    share = float(alpha)
    if not 0 <= share <= 1:
        raise RecipeError(f"alpha is {share:g}; it is the share of the distillation loss and lies between 0 and 1.")
    if targets is None or share == 0:
        return None
    check_combination(loss, tail, temperature)
    reason = refusal_of_targets(tail, sampled=targets.sampled)
    if reason is not None:
        raise RecipeError(reason)
    if len(targets.ids_NK) != len(label_N):
        raise RecipeError(
            f"{len(targets.ids_NK)} targets for {len(label_N)} labels: give one target for every position."
        )
    if targets.ids_NK.numel() and int(targets.ids_NK.max()) >= vocabulary:
        raise RecipeError(
            f"The targets name token id {int(targets.ids_NK.max())}, and the student has {vocabulary} ids. "
            "Teacher and student must share a tokenizer."
        )
    distil_N = positions(targets, row_len=row_len) & (label_N != IGNORED)
    return Term(targets, label_N, distil_N, targets.length_N, alpha, loss, temperature, tail)
