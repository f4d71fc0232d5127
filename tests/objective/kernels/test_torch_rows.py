"""The primitive: derivatives of any function of a few logits and of numbers over the vocabulary become those of all
logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from predistill.objective.kernels.reading import Reads, Scratch, Student, column
from predistill.objective.kernels.torch_rows import deviation, read_, write_gradient_


def loss(student: Student) -> Tensor:
    """No loss of ours: a function that uses every number, each in its own way."""
    numbers = student.lse_N.sin()
    for number, function in zip(student[2:], (torch.square, torch.cos, torch.exp, torch.tanh), strict=True):
        if number is not None:
            numbers = numbers + function(0.3 * number)
    return (numbers + (student.logit_NJ * student.lse_N[:, None]).tanh().sum(dim=1)).sum()


READS: list[dict[str, Any]] = [
    {},
    {"tau": 3.0},
    {"tau": "each"},
    {"outside": True},
    {"outside": True, "tau": 3.0},
    {"outside": True, "tau": "each"},
    {"entropy": True},
    {"entropy": True, "tau": 0.5, "total": True},
    {"entropy": True, "tau": "each"},
    {"total": True},
]


@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("asked", READS, ids=str)
def test_any_function_of_the_numbers_gets_its_gradient(asked: dict[str, Any], softcap: float | None) -> None:
    generator = torch.Generator().manual_seed(51)
    logit_CV = 2 * torch.randn(4, 9, dtype=torch.float64, generator=generator)
    ids_CJ = torch.tensor([[3, 5, 3], [0, 0, 8], [7, 1, 2], [4, 0, 0]])  # the label may be kept; padding reads id 0
    kept_CJ = torch.tensor([[True, True, False], [True, False, False], [False, False, False], [True, True, False]])
    tau: Any = asked.get("tau", 1.0)
    tau = torch.tensor([0.7, 1.0, 2.0, 3.0], dtype=torch.float64) if tau == "each" else tau
    outside = asked.get("outside", False)
    reads = Reads(tau, kept_CJ if outside else None, asked.get("entropy", False), asked.get("total", False))

    leaf_CV = logit_CV.clone().requires_grad_()
    dense_CV = leaf_CV if softcap is None else softcap * torch.tanh(leaf_CV / softcap)
    tempered_CV = dense_CV / column(tau)
    mask_CV = torch.zeros_like(logit_CV, dtype=torch.bool)
    for row, (ids, kept) in enumerate(zip(ids_CJ.tolist(), kept_CJ.tolist(), strict=True)):
        mask_CV[row, [i for i, k in zip(ids, kept, strict=True) if k]] = True
    dense = Student(
        dense_CV.gather(1, ids_CJ),
        dense_CV.logsumexp(1),
        tempered_CV.logsumexp(1) if reads.tempered else None,
        tempered_CV.masked_fill(mask_CV, -torch.inf).logsumexp(1) if outside else None,
        torch.distributions.Categorical(logits=tempered_CV).entropy() if reads.entropy else None,
        dense_CV.sum(1) if reads.total else None,
    )
    (wanted_CV,) = torch.autograd.grad(loss(dense), leaf_CV)

    reading = read_(logit_CV, ids_CJ, reads, Scratch(), softcap=softcap)
    for found, number in zip(reading.student, dense, strict=True):
        assert (found is None) == (number is None)
        if found is not None and number is not None:
            assert torch.allclose(found, number, rtol=1e-12)
            found.requires_grad_()
    leaves = [number for number in reading.student if number is not None]
    derivatives = iter(torch.autograd.grad(loss(reading.student), leaves))
    by = Student(*(None if number is None else next(derivatives) for number in reading.student))  # type: ignore[arg-type]
    with torch.no_grad():
        gradient_CV = write_gradient_(reading, by)
    assert torch.allclose(gradient_CV, wanted_CV, rtol=1e-12, atol=1e-12)


def test_nothing_outside_the_kept_ids_is_minus_infinity_and_no_nan() -> None:
    logit_CV = torch.randn(2, 3, generator=torch.Generator().manual_seed(52))
    wanted_C = logit_CV.double().logsumexp(1)
    ids_CJ = torch.tensor([[0, 1, 2, 1], [2, 0, 0, 1]])
    kept_CJ = torch.tensor([[True, True, True, False], [True, False, False, False]])
    student = read_(logit_CV, ids_CJ, Reads(kept_CJ=kept_CJ), Scratch()).student
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
    student = read_(logit_CV, ids_CJ, Reads(), Scratch()).student
    assert torch.equal(logit_CV, wanted_CV)
    assert (student.lse_N.double() - wanted_C).abs().max() <= 2e-7 * max(abs(offset), 10)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_the_deviation_is_that_of_capped_logits_whatever_their_offset(softcap: float | None, offset: float) -> None:
    logit_CV = 3 * torch.randn(5, 70, generator=torch.Generator().manual_seed(54)) + offset
    before_CV = logit_CV.clone()
    capped_CV = logit_CV.double() if softcap is None else softcap * torch.tanh(logit_CV.double() / softcap)
    found_C = deviation(logit_CV, Scratch(), softcap=softcap)
    assert torch.equal(logit_CV, before_CV)
    assert torch.allclose(found_C.double(), capped_CV.std(dim=1, correction=0), rtol=1e-5, atol=1e-5)


def test_scratch_gives_the_same_room_again_and_grows() -> None:
    scratch = Scratch()
    small = scratch("a", torch.empty(2, 3))
    assert scratch("a", torch.empty(1, 3)).data_ptr() == small.data_ptr()
    assert scratch("b", torch.empty(2, 3)).data_ptr() != small.data_ptr()
    assert scratch("a", torch.empty(4, 3)).shape == (4, 3)
