"""At which positions the teacher is listened to. Elsewhere the LM loss counts in full.

N positions, whole rows of row_len
"""

# ruff: noqa: ARG002  (positions share one call)

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from predistill.errors import RecipeError
from predistill.objective.targets import SparseTargets

__all__ = ["All", "DropLowTeacherEntropy", "Positions", "TopStudentEntropy"]

_choice = ConfigDict(extra="forbid")
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=_choice)
class All:
    """Every position that has a target."""

    kind: Literal["all"] = "all"
    needs: ClassVar[tuple[str, ...]] = ()
    reads_student: ClassVar[bool] = False

    def __call__(
        self,
        targets: SparseTargets,
        able_N: Tensor,
        *,
        row_len: int | None = None,
        student_entropy_N: Tensor | None = None,
    ) -> Tensor:
        """Which positions distil, bool [N]; able_N: which can (counted, with a target)."""
        return able_N


@dataclass(frozen=True, config=_choice)
class TopStudentEntropy:
    """In each row, the share `frac` of positions where the student is least sure, rounded up (SE-KD, arXiv 2602.01395).
    Costs a fourth matrix product: the student's entropy must be known before the loss."""

    frac: Share = 0.2
    kind: Literal["top_student_entropy"] = "top_student_entropy"
    needs: ClassVar[tuple[str, ...]] = ()
    reads_student: ClassVar[bool] = True

    def __call__(
        self,
        targets: SparseTargets,
        able_N: Tensor,
        *,
        row_len: int | None = None,
        student_entropy_N: Tensor | None = None,
    ) -> Tensor:
        """Which positions distil, bool [N]; student_entropy_N: nats at temperature 1, read where able_N."""
        assert student_entropy_N is not None
        return _highest(student_entropy_N, able_N, frac=self.frac, row_len=row_len, kind=self.kind)


@dataclass(frozen=True, config=_choice)
class DropLowTeacherEntropy:
    """In each row, all but the share `frac` of positions where the teacher is surest, rounded down (token routing,
    arXiv 2509.01649: dropping 15 % restores copying from the context)."""

    frac: Share = 0.15
    kind: Literal["drop_low_teacher_entropy"] = "drop_low_teacher_entropy"
    needs: ClassVar[tuple[str, ...]] = ("entropy_N",)
    reads_student: ClassVar[bool] = False

    def __call__(
        self,
        targets: SparseTargets,
        able_N: Tensor,
        *,
        row_len: int | None = None,
        student_entropy_N: Tensor | None = None,
    ) -> Tensor:
        """Which positions distil, bool [N]."""
        assert targets.entropy_N is not None
        return _highest(targets.entropy_N, able_N, frac=1 - self.frac, row_len=row_len, kind=self.kind)


Positions = Annotated[All | TopStudentEntropy | DropLowTeacherEntropy, Field(discriminator="kind")]


def _highest(value_N: Tensor, able_N: Tensor, *, frac: float, row_len: int | None, kind: str) -> Tensor:
    """In each row, the ceil(frac * able) able positions of highest value, ties by position."""
    if row_len is None or row_len < 1 or len(value_N) % row_len:
        given = "no row_len is given" if row_len is None else f"{len(value_N)} positions are no whole rows of {row_len}"
        raise RecipeError(
            f"positions {kind} compares the positions of a row, and {given}: pass whole rows and row_len."
        )
    able_BT = able_N.view(-1, row_len)
    value_BT = value_N.view(-1, row_len).double().masked_fill(~able_BT, -torch.inf)
    order_BT = value_BT.argsort(dim=1, descending=True, stable=True)
    # 1e-9: .15 of 20 positions are 3, though .15 * 20 is a little more in binary.
    wanted_B1 = (frac * able_BT.sum(dim=1, keepdim=True).double() - 1e-9).ceil()
    chosen_BT = torch.arange(row_len, device=able_N.device) < wanted_B1
    return torch.zeros_like(able_BT).scatter_(1, order_BT, chosen_BT).view(-1) & able_N
