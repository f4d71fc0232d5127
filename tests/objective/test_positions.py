"""Which positions distil: ranked within rows, of those that can."""

from __future__ import annotations

import pytest
import torch

from predistill.errors import RecipeError
from predistill.objective import DropLowTeacherEntropy, Full, SparseTargets, TopStudentEntropy

ABLE = torch.tensor([1, 1, 1, 1, 0, 1, 1, 1, 0, 1], dtype=torch.bool)
ENTROPY = torch.tensor([5.0, 1.0, 4.0, 2.0, 9.0, 3.0, 3.0, 3.0, 9.0, 8.0])


def targets() -> SparseTargets:
    found = Full()(torch.zeros(10, 4))
    assert found.entropy_N is not None
    found.entropy_N.copy_(ENTROPY)
    return found


@pytest.mark.parametrize(
    ("frac", "wanted"),
    [
        (0.0, []),
        (0.25, [0, 9]),
        (0.5, [0, 2, 5, 9]),  # ties: the first
        (0.51, [0, 2, 3, 5, 6, 9]),  # rounded up
        (1.0, [0, 1, 2, 3, 5, 6, 7, 9]),
    ],
)
def test_the_least_sure_students_share_is_taken_in_each_row(frac: float, wanted: list[int]) -> None:
    chosen_N = TopStudentEntropy(frac=frac)(targets(), ABLE, row_len=5, student_entropy_N=ENTROPY)
    assert chosen_N.nonzero()[:, 0].tolist() == wanted


@pytest.mark.parametrize(("frac", "wanted"), [(0.0, 8), (0.24, 8), (0.25, 6), (0.5, 4), (1.0, 0)])
def test_the_surest_teachers_share_is_dropped_rounded_down(frac: float, wanted: int) -> None:
    chosen_N = DropLowTeacherEntropy(frac=frac)(targets(), ABLE, row_len=5)
    assert int(chosen_N.sum()) == wanted
    assert not (chosen_N & ~ABLE).any()


@pytest.mark.parametrize(("frac", "able", "wanted"), [(0.15, 100, 15), (0.3, 50, 15), (0.27, 100, 27), (0.2, 256, 52)])
def test_a_share_is_counted_as_written_not_as_float32_holds_it(frac: float, able: int, wanted: int) -> None:
    able_N = torch.ones(able, dtype=torch.bool)
    entropy_N = torch.arange(able).float()
    chosen_N = TopStudentEntropy(frac=frac)(
        SparseTargets(torch.zeros(able, 1).long()), able_N, row_len=able, student_entropy_N=entropy_N
    )
    assert int(chosen_N.sum()) == wanted


def test_rows_are_asked_for() -> None:
    with pytest.raises(RecipeError, match="no row_len is given"):
        DropLowTeacherEntropy()(targets(), ABLE)
    with pytest.raises(RecipeError, match="no whole rows of 0"):
        DropLowTeacherEntropy()(targets(), ABLE, row_len=0)
    with pytest.raises(RecipeError, match="10 positions are no whole rows of 4"):
        DropLowTeacherEntropy()(targets(), ABLE, row_len=4)
