"""How much the teacher's distribution is flattened or sharpened, and the student's with it.

A temperature tells three things: tau of the teacher, tau of the student in the distillation term (which may depend on
the standard deviation of the student's logits), and the factor of that term. Each is a number for all positions, or one
a position.

N positions
"""

# ruff: noqa: ARG002  (temperatures share their calls)

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

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

    sides = "teacher": softmax(z_teacher / value) against the student at temperature 1, no factor (PAPER section 1);
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
    teacher's temperature squared (NormKD, arXiv 2308.00520; PAPER section 6).

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
    flat distributions count more (value > 1) (WTTM, arXiv 2402.11148; PAPER section 6). Bias: as Static's.
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
class StdScaled:
    """The teacher alone at tau = value * (s / reference)^strength, between low and high; s: the standard deviation of
    its logits at the position (ours, after AdaKD_SD of PAPER section 3).

    reference: the mean of s; a stored teacher takes it from its store. Bias: as Static's, position by position.
    """

    value: PositiveFloat = 1.0
    strength: float = 1.0
    low: PositiveFloat = 0.25
    high: PositiveFloat = 4.0
    reference: PositiveFloat | None = None
    kind: Literal["std"] = "std"
    needs: ClassVar[tuple[str, ...]] = ("logit_std_N",)
    teacher_only: ClassVar[bool] = True

    @model_validator(mode="after")
    def _in_order(self) -> StdScaled:
        _check_bounds(self.low, self.high)
        return self

    def teacher(self, targets: SparseTargets) -> float | Tensor:
        """[N]."""
        return _scaled(self, targets.logit_std_N)

    def student(self, deviation: Callable[[], Tensor]) -> float | Tensor:
        """1."""
        return 1.0

    def factor(self, targets: SparseTargets) -> float | Tensor:
        """1."""
        return 1.0


@dataclass(frozen=True, config=_choice)
class EntropyScaled:
    """The teacher alone at tau = value * (s / reference)^strength, between low and high; s: the entropy of its
    distribution at the position, nats (ours, after AdaKD_H of PAPER section 3).

    reference: the mean of s; a stored teacher takes it from its store. Bias: as Static's, position by position.
    """

    value: PositiveFloat = 1.0
    strength: float = 1.0
    low: PositiveFloat = 0.25
    high: PositiveFloat = 4.0
    reference: PositiveFloat | None = None
    kind: Literal["entropy"] = "entropy"
    needs: ClassVar[tuple[str, ...]] = ("entropy_N",)
    teacher_only: ClassVar[bool] = True

    @model_validator(mode="after")
    def _in_order(self) -> EntropyScaled:
        _check_bounds(self.low, self.high)
        return self

    def teacher(self, targets: SparseTargets) -> float | Tensor:
        """[N]."""
        return _scaled(self, targets.entropy_N)

    def student(self, deviation: Callable[[], Tensor]) -> float | Tensor:
        """1."""
        return 1.0

    def factor(self, targets: SparseTargets) -> float | Tensor:
        """1."""
        return 1.0


Temperature = Annotated[Static | NormKD | WTTM | StdScaled | EntropyScaled, Field(discriminator="kind")]


def _check_bounds(low: float, high: float) -> None:
    if low > high:
        raise ValueError(f"low {low:g} is above high {high:g}; exchange them")


def _scaled(choice: StdScaled | EntropyScaled, statistic_N: Tensor | None) -> Tensor:
    assert statistic_N is not None
    if choice.reference is None:
        raise RecipeError(
            f"temperature {choice.kind} has no reference, the mean of its statistic over the corpus. "
            "A store tells it; with targets from elsewhere, set temperature.reference."
        )
    # The logarithm first: 0 to a negative strength is infinite, and clamped.
    log_N = (
        choice.strength * (statistic_N / choice.reference).log() if choice.strength else torch.zeros_like(statistic_N)
    )
    return (choice.value * log_N.exp()).clamp(choice.low, choice.high)
