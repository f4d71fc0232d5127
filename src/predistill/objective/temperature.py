"""How much the teacher's distribution is flattened or sharpened before the student sees it."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, PositiveFloat
from pydantic.dataclasses import dataclass

__all__ = ["Static", "Temperature"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Static:
    """One temperature for every position.

    sides = "teacher": softmax(z_teacher / value) against the student at temperature 1, no factor (PAPER section 1).
    sides = "both": the student's logits are divided too, and the loss is multiplied by value^2 (arXiv 1503.02531).
    """

    value: PositiveFloat = 1.0
    sides: Literal["teacher", "both"] = "teacher"
    kind: Literal["static"] = "static"

    @property
    def student_value(self) -> float:
        """The temperature of the student's softmax in the distillation term."""
        return self.value if self.sides == "both" else 1.0


Temperature = Static
