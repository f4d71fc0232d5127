"""What each temperature says of the teacher, of the student and of the loss's weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from predistill.objective import WTTM, EntropyScaled, Full, NormKD, SparseTargets, Static, StdScaled, TopK


def logits() -> torch.Tensor:
    return 2 * torch.randn(6, 30, generator=torch.Generator().manual_seed(71))


def deviation() -> torch.Tensor:
    raise AssertionError("only norm_kd asks for it")


def targets() -> SparseTargets:
    return TopK(k=5)(logits())


def test_norm_kd_divides_each_side_by_its_own_deviation() -> None:
    found, student_NV = targets(), 7 + 3 * logits().flip(0)
    teacher_N, student_N = (
        NormKD(scale=0.5).teacher(found),
        NormKD(scale=0.5).student(lambda: student_NV.std(1, correction=0)),
    )
    assert torch.allclose(teacher_N, logits().std(1, correction=0) / 2, rtol=1e-4)  # type: ignore[arg-type]
    assert torch.allclose(student_N, student_NV.std(1, correction=0) / 2, rtol=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(NormKD(scale=0.5).factor(found), teacher_N**2)  # type: ignore[arg-type]


def test_a_flat_distribution_has_a_temperature_above_zero() -> None:
    flat = Full()(torch.zeros(2, 8))
    for tau in (NormKD().teacher(flat), NormKD().student(lambda: torch.zeros(2))):
        assert (torch.as_tensor(tau) > 0).all()


def test_wttm_weighs_by_the_kept_powers() -> None:
    prob_NK = targets().logprob_NK.exp()  # type: ignore[union-attr]
    assert torch.allclose(torch.as_tensor(WTTM(value=3.0).factor(targets())), (prob_NK ** (1 / 3)).sum(1))
    assert torch.allclose(torch.as_tensor(WTTM(value=1.0).factor(targets())), prob_NK.sum(1))


@pytest.mark.parametrize(("choice", "name"), [(StdScaled, "logit_std_N"), (EntropyScaled, "entropy_N")])
def test_scaled_temperatures_follow_their_statistic_between_their_bounds(choice: Any, name: str) -> None:
    statistic_N = getattr(targets(), name)
    found_N = choice(value=2.0, strength=1.5, low=1.0, high=3.0, reference=2.0).teacher(targets())
    assert torch.allclose(found_N, (2 * (statistic_N / 2) ** 1.5).clamp(1.0, 3.0))
    assert (choice(value=1.3, strength=0.0, reference=2.0).teacher(targets()) == 1.3).all()
    assert choice(value=1.3, reference=2.0).student(deviation) == 1.0


def test_no_entropy_at_all_is_clamped_and_no_nan() -> None:
    sure = Full()(torch.tensor([[0.0, -200.0], [-200.0, 0.0]]))
    assert sure.entropy_N is not None
    sure.entropy_N.zero_()
    for strength, wanted in ((1.0, 0.25), (-1.0, 4.0)):
        assert (torch.as_tensor(EntropyScaled(strength=strength, reference=1.0).teacher(sure)) == wanted).all()


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="exchange them"):
        StdScaled(low=2.0, high=1.0)


def test_static_divides_one_side_or_both() -> None:
    one, both = Static(value=3.0), Static(value=3.0, sides="both")
    assert (one.teacher(targets()), one.student(deviation), one.factor(targets())) == (3.0, 1.0, 1.0)
    assert (both.teacher(targets()), both.student(deviation), both.factor(targets())) == (3.0, 3.0, 9.0)
    assert one.teacher_only
    assert not both.teacher_only
