"""The primitive: derivatives of any function of a few logits and log-sum-exps become those of all logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from predistill.objective.losses import Student
from predistill.objective.primitive import read_, write_gradient_


def loss(student: Student) -> Tensor:
    """No loss of ours: a function that uses every number, each in its own way."""
    assert student.lse_tau_N is not None
    numbers = student.lse_N.sin() + student.lse_tau_N.square()
    if student.lse_outside_N is not None:
        numbers = numbers + student.lse_outside_N.cos()
    return (numbers + (student.logit_NJ * student.lse_N[:, None]).tanh().sum(dim=1)).sum()


@pytest.mark.parametrize(("tau", "outside"), [(3.0, True), (3.0, False), (2.0, False), (0.5, False)])
def test_any_function_of_the_numbers_gets_its_gradient(tau: float, outside: bool) -> None:
    generator = torch.Generator().manual_seed(51)
    logit_CV = torch.randn(4, 9, dtype=torch.float64, generator=generator)
    ids_CJ = torch.tensor([[3, 5, 3], [0, 0, 8], [7, 1, 2], [4, 0, 0]])  # an id may be named twice
    kept_CJ = torch.tensor([[True, True, False], [True, False, False], [False, False, False], [True, True, False]])

    dense_CV = logit_CV.clone().requires_grad_()
    mask_CV = torch.zeros_like(logit_CV, dtype=torch.bool)
    for row, (ids, kept) in enumerate(zip(ids_CJ.tolist(), kept_CJ.tolist(), strict=True)):
        mask_CV[row, [i for i, k in zip(ids, kept, strict=True) if k]] = True
    dense = Student(
        dense_CV.gather(1, ids_CJ),
        dense_CV.logsumexp(1),
        (dense_CV / tau).logsumexp(1),
        dense_CV.masked_fill(mask_CV, -torch.inf).logsumexp(1) if outside else None,
    )
    (wanted_CV,) = torch.autograd.grad(loss(dense), dense_CV)

    reading = read_(
        logit_CV, ids_CJ, tau=tau, tempered_CV=torch.empty_like(logit_CV), kept_CJ=kept_CJ if outside else None
    )
    for found, number in zip(reading.student, dense, strict=True):
        if number is not None:
            assert found is not None
            assert torch.allclose(found, number, rtol=1e-12)
            found.requires_grad_()
    leaves = [number for number in reading.student if number is not None]
    by = Student(*torch.autograd.grad(loss(reading.student), leaves))  # type: ignore[arg-type]
    write_gradient_(reading, by)
    assert torch.allclose(logit_CV, wanted_CV, rtol=1e-12, atol=1e-12)


def test_nothing_outside_the_kept_ids_is_minus_infinity_and_no_nan() -> None:
    logit_CV = torch.randn(2, 3, generator=torch.Generator().manual_seed(52))
    wanted_C = logit_CV.double().logsumexp(1)
    ids_CJ = torch.tensor([[0, 1, 2, 1], [2, 0, 0, 1]])
    kept_CJ = torch.tensor([[True, True, True, False], [True, False, False, False]])
    student = read_(logit_CV, ids_CJ, kept_CJ=kept_CJ).student
    assert student.lse_outside_N is not None
    assert student.lse_outside_N[0] == -torch.inf
    assert torch.isfinite(student.lse_outside_N[1])
    assert (student.lse_N.double() - wanted_C).abs().max() < 1e-6
    assert torch.isfinite(logit_CV).all()


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 64, 65, 4097])
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_softmax_in_the_buffer_of_the_logits_is_softmax(columns: int, offset: float) -> None:
    """torch does not promise that softmax may write over its input: this is where we would learn that it may not."""
    logit_CV = 3 * torch.randn(5, columns, generator=torch.Generator().manual_seed(53)) + offset
    wanted_CV, wanted_C = torch.softmax(logit_CV, dim=1), logit_CV.double().logsumexp(1)
    ids_CJ = torch.zeros(5, 1, dtype=torch.int64)
    student = read_(logit_CV, ids_CJ).student
    assert torch.equal(logit_CV, wanted_CV)
    assert (student.lse_N.double() - wanted_C).abs().max() <= 2e-7 * max(abs(offset), 10)
