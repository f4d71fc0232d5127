"""How much the teacher's distribution is flattened or sharpened, and the student's with it.

A temperature tells three things: tau of the teacher, tau of the student in the distillation term (which may depend on
the standard deviation of the student's logits), and the factor of that term. Each is a number for all positions, or one
a position.

N positions
"""

# ruff: noqa: ARG002  (temperatures share their calls)

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import ConfigDict, Field, PositiveFloat, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from predistill.errors import RecipeError
from predistill.objective.targets import SparseTargets

__all__ = ["WTTM", "EntropyScaled", "NormKD", "Static", "StdScaled", "Temperature"]

_choice = ConfigDict(extra="forbid")

LEAST_TAU = 1e-3  # of a standard deviation that is 0: a distribution that is flat stays so at any temperature


@dataclass(frozen=True, config=_choice)
class Static:
    """One temperature for every position.

    sides = "teacher": softmax(z_teacher / value) against the student at temperature 1, no factor (arXiv 2410.16215);
    the student is driven to the tempered distribution, so its own is biased flatter (value > 1) or sharper.
    sides = "both": the student's logits are divided too, and the loss is multiplied by value^2 (arXiv 1503.02531);
    its optimum is the teacher's own distribution.
    """

    value: PositiveFloat = 1.0
    sides: Literal["teacher", "both"] = "teacher"
    kind: Literal["static"] = "static"
    needs: ClassVar[tuple[str, ...]] = ()

    @property
    def teacher_only(self) -> bool:
        """Whether the student stays at temperature 1."""
        return self.sides == "teacher" or self.value == 1

    def teacher(self, targets: SparseTargets) -> float | Tensor:
        """The teacher's temperature."""
        return self.value

    def student(self, deviation: Callable[[], Tensor]) -> float | Tensor:
        """The student's temperature in the distillation term."""
        return self.value if self.sides == "both" else 1.0

    def factor(self, targets: SparseTargets) -> float | Tensor:
        """What the distillation term is multiplied by."""
        return self.value**2 if self.sides == "both" else 1.0


@dataclass(frozen=True, config=_choice)
class NormKD:
    """Each side is divided by `scale` times its own standard deviation over the vocabulary, the loss multiplied by the
    teacher's temperature squared (arXiv 2308.00520).

    The student's deviation counts as a constant in the gradient. The optimum has the teacher's shape at any scale of
    the logits, so the student's confidence is biased unless the lm share mends it.
    """

    scale: PositiveFloat = 1.0
    kind: Literal["norm_kd"] = "norm_kd"
    needs: ClassVar[tuple[str, ...]] = ("logit_std_N",)
    teacher_only: ClassVar[bool] = False

    def teacher(self, targets: SparseTargets) -> float | Tensor:
        """[N]."""
        assert targets.logit_std_N is not None
        return (self.scale * targets.logit_std_N).clamp(min=LEAST_TAU)

    def student(self, deviation: Callable[[], Tensor]) -> float | Tensor:
        """[N]."""
        tau_N = self.scale * deviation()
        return tau_N.clamp(min=LEAST_TAU)

    def factor(self, targets: SparseTargets) -> float | Tensor:
        """[N]."""
        tau_N = self.teacher(targets)
        return tau_N * tau_N


@dataclass(frozen=True, config=_choice)
class WTTM:
    """The teacher alone at temperature `value`, each position weighted by U = sum p^(1 / value) over its kept entries:
    flat distributions count more (value > 1) (arXiv 2402.11148). Bias: as Static's.
    """

    value: PositiveFloat = 2.0
    kind: Literal["wttm"] = "wttm"
    needs: ClassVar[tuple[str, ...]] = ()
    teacher_only: ClassVar[bool] = True

    def teacher(self, targets: SparseTargets) -> float | Tensor:
        """The teacher's temperature."""
        return self.value

    def student(self, deviation: Callable[[], Tensor]) -> float | Tensor:
        """1."""
        return 1.0

    def factor(self, targets: SparseTargets) -> float | Tensor:
        """U [N]."""
        assert targets.logprob_NK is not None
        raised_NK = (targets.logprob_NK / self.value).exp()
        return raised_NK.masked_fill(targets.columns_NK < 0, 0.0).sum(dim=1)


@dataclass(frozen=True, config=_choice)
class _Scaled:
    """tau = value * (s / reference)^strength, between low and high; s: a statistic of the teacher at the position."""

    value: PositiveFloat = 1.0
    strength: float = 1.0
    low: PositiveFloat = 0.25
    high: PositiveFloat = 4.0
    reference: PositiveFloat | None = None
    teacher_only: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]]  # the statistic
    mean: ClassVar[str]  # what a store's self-test calls its mean

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}; exchange them")
        return self

    def teacher(self, targets: SparseTargets) -> float | Tensor:
        """[N]."""
        if self.reference is None:
            raise RecipeError(
                "The temperature has no reference, the mean of its statistic over the corpus. "
                "A store tells it; with targets from elsewhere, set temperature.reference."
            )
        statistic_N: Tensor = getattr(targets, self.needs[0])
        # The logarithm first: 0 to a negative strength is infinite, and clamped.
        log_N = torch.log(statistic_N / self.reference) * self.strength if self.strength else statistic_N * 0
        return (self.value * log_N.exp()).clamp(self.low, self.high)

    def student(self, deviation: Callable[[], Tensor]) -> float | Tensor:
        """1."""
        return 1.0

    def factor(self, targets: SparseTargets) -> float | Tensor:
        """1."""
        return 1.0


@dataclass(frozen=True, config=_choice)
class StdScaled(_Scaled):
    """The teacher alone at tau = value * (s / reference)^strength, between low and high; s: the standard deviation of
    its logits at the position (ours, after AdaKD_SD of arXiv 2410.16215).

    reference: the mean of s; a stored teacher takes it from its store. Bias: as Static's, position by position.
    """

    kind: Literal["std"] = "std"
    needs: ClassVar[tuple[str, ...]] = ("logit_std_N",)
    mean: ClassVar[str] = "mean_logit_std"


@dataclass(frozen=True, config=_choice)
class EntropyScaled(_Scaled):
    """StdScaled with another statistic, s: the entropy of the teacher's distribution at the position, nats (ours, after
    AdaKD_H of arXiv 2410.16215)."""

    kind: Literal["entropy"] = "entropy"
    needs: ClassVar[tuple[str, ...]] = ("entropy_N",)
    mean: ClassVar[str] = "mean_entropy_nats"


Temperature = Annotated[Static | NormKD | WTTM | StdScaled | EntropyScaled, Field(discriminator="kind")]
