"""At which positions the teacher is listened to. Elsewhere the LM loss counts in full.

N positions
"""

# ruff: noqa: ARG002  (positions share one call)

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor

from predistill.objective.targets import SparseTargets

__all__ = ["All", "Positions"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class All:
    """Every position that has a target."""

    kind: Literal["all"] = "all"

    def __call__(self, targets: SparseTargets, *, row_len: int | None = None) -> Tensor:
        """Which positions distil, bool [N]; row_len: N is whole rows of so many positions."""
        return targets.present_N


Positions = All
