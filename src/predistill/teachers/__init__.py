"""Where the teacher's distributions come from: a store, or a model at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # a process that only reads a store does without torch
    from predistill.objective import SparseTargets

__all__ = ["Teacher"]


class Teacher(Protocol):
    """All that training knows of a teacher. n rows  T position  K kept entries"""

    def targets(self, rows: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]) -> SparseTargets:
        """Targets [n*T, K] of corpus rows `rows`, whose token ids are `ids` [n, T + 1], int64.

        A row's targets (draws too) never depend on which rows stand beside it, but for the last bits of a model's own
        arithmetic. A row that the teacher does not know has no target: its ids are all -1.
        """
        ...
