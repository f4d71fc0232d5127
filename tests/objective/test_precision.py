"""Gradients in float32 and on narrower operands, where the student is near, sure, or far off zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from predistill.objective import (
    Full,
    Ghost,
    Renormalise,
    Sampled,
    SparseTargets,
    TopK,
    TopPK,
    distill_loss,
    linear_distill_loss,
)
from predistill.objective.combine import needs_all
from tests.objective.cases import ALLOWED, close


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def near_student(*, spread: float, offset: float = 0.0) -> tuple[Tensor, Tensor, Tensor, SparseTargets]:
    """A student whose logits are the teacher's plus noise: (hidden, weight, label, targets)."""
    generator = torch.Generator().manual_seed(4)
    weight_VD = torch.randn(512, 16, generator=generator)
    hidden_ND = torch.randn(64, 16, generator=generator)
    teacher_NV = hidden_ND @ weight_VD.T
    targets = TopPK(p=0.95, k=50)(teacher_NV)
    noise_ND = spread * torch.randn(64, 16, generator=generator)
    label_N = torch.randint(512, (64,), generator=generator)
    return hidden_ND + noise_ND + offset, weight_VD, label_N, targets


def gradient_errors(
    hidden_ND: Tensor, weight_VD: Tensor, label_N: Tensor, targets: SparseTargets, **choices: Any
) -> list[float]:
    """Relative errors of both gradients against float64 on the same numbers."""
    gradients = []
    for dtype in (hidden_ND.dtype, torch.float64):
        inputs = [x.detach().to(dtype).requires_grad_() for x in (hidden_ND, weight_VD)]
        parts = linear_distill_loss(*inputs, label_N, targets, **choices)
        gradients.append(torch.autograd.grad(parts.total, inputs))
    return [error(found, wanted) for found, wanted in zip(*gradients, strict=True)]


def near_targets(logit_NV: Tensor, tail: Any, temperature: Any) -> SparseTargets:
    if tail.kind == "as_sampled":
        return Sampled(draws=200)(logit_NV, generator=torch.Generator().manual_seed(6))
    if needs_all(tail, temperature) and temperature.kind not in ("static", "wttm"):
        return Full()(logit_NV)
    return TopPK(p=0.95, k=50)(logit_NV, tau=getattr(temperature, "value", None))


@pytest.mark.parametrize("tail", [Renormalise(), Ghost()], ids=lambda tail: tail.kind)
@pytest.mark.parametrize("spread", [1.0, 0.02])
def test_a_student_can_be_near_or_far(tolerance: Any, tail: Any, spread: float) -> None:
    case = near_student(spread=spread)
    kd = linear_distill_loss(*case, alpha=1.0, tail=tail).kd
    assert kd is not None
    assert (float(kd) / 64 < 0.2) == (spread < 1)
    assert max(gradient_errors(*case, alpha=1.0, tail=tail)) < tolerance.float32_gradient


@pytest.mark.parametrize("spread", [1.0, 0.02])
@pytest.mark.parametrize(("loss", "tail", "temperature"), ALLOWED)
def test_float32_gradients_hold_near_convergence(
    tolerance: Any, loss: Any, tail: Any, temperature: Any, spread: float
) -> None:
    """Random logits cannot show the cancellation in q - t; a student that is nearly there does."""
    hidden_ND, weight_VD, label_N, _ = near_student(spread=spread)
    targets = near_targets(near_student(spread=0.0)[0] @ weight_VD.T, tail, temperature)
    parts = {"loss": loss, "tail": tail, "temperature": temperature}
    errors = gradient_errors(hidden_ND, weight_VD, label_N, targets, alpha=1.0, **parts)
    assert max(errors) < (tolerance.float32_gradient if spread == 1 else tolerance.float32_near)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("loss", "tail", "temperature"), ALLOWED)
def test_narrow_operands_keep_their_gradient(
    tolerance: Any, loss: Any, tail: Any, temperature: Any, dtype: torch.dtype
) -> None:
    hidden_ND, weight_VD, label_N, _ = near_student(spread=0.05)
    targets = near_targets(near_student(spread=0.0)[0] @ weight_VD.T, tail, temperature)
    parts = {"loss": loss, "tail": tail, "temperature": temperature}
    errors = gradient_errors(hidden_ND.to(dtype), weight_VD.to(dtype), label_N, targets, alpha=1.0, **parts)
    assert max(errors) < tolerance.bfloat16_gradient


def test_a_float16_sum_over_many_positions_is_divided_before_it_is_narrowed() -> None:
    hidden_ND = torch.full((8192, 1), 10.0, dtype=torch.float16)
    weight_VD = torch.zeros(4, 1, dtype=torch.float16, requires_grad=True)
    parts = linear_distill_loss(hidden_ND, weight_VD, torch.zeros(8192, dtype=torch.int64))
    (parts.total / parts.count).backward()
    assert weight_VD.grad is not None
    assert weight_VD.grad.dtype == torch.float16
    assert weight_VD.grad[:, 0].tolist() == [-7.5, 2.5, 2.5, 2.5]


def test_the_reference_computes_in_float32_whatever_it_is_given() -> None:
    hidden_ND, weight_VD, label_N, targets = near_student(spread=0.05)
    logit_NV = (hidden_ND @ weight_VD.T).bfloat16()
    found, wanted = (distill_loss(x, label_N, targets, tail=Ghost()).total for x in (logit_NV, logit_NV.float()))
    assert torch.equal(found, wanted)


def test_a_large_common_offset_of_the_logits_changes_nothing(tolerance: Any) -> None:
    hidden_ND, weight_VD, label_N, targets = near_student(spread=0.5)
    weight_VD[:, 0] = 1.0
    moved_ND = hidden_ND.clone()
    moved_ND[:, 0] += (
        4096.0  # exactly representable sums would be asking too much: compare with float64 on these numbers
    )
    assert max(gradient_errors(moved_ND, weight_VD, label_N, targets, alpha=0.7)) < 100 * tolerance.float32_gradient
    found = linear_distill_loss(moved_ND, weight_VD, label_N, targets, alpha=0.7)
    wanted = linear_distill_loss(moved_ND.double(), weight_VD.double(), label_N, targets, alpha=0.7)
    close(found.total.double(), wanted.total, 1e-3)


@pytest.mark.parametrize("sure", [20.0, 60.0, 200.0])
def test_a_sure_student_has_a_finite_and_right_ghost_loss(tolerance: Any, sure: float) -> None:
    """1 - sum q is 0 in float32 here; the mass outside the kept ids is not."""
    logit_NV = torch.zeros(2, 8)
    logit_NV[:, 3] = sure
    targets = SparseTargets(
        torch.tensor([[3, 5], [3, 5]]),
        logprob_NK=torch.tensor([[0.8, 0.1]] * 2).log(),
        log_rest_N=torch.tensor([0.1, 0.1]).log(),
    )
    label_N = torch.tensor([3, 0])
    parts = linear_distill_loss(logit_NV, torch.eye(8), label_N, targets, alpha=1.0, tail=Ghost())
    wanted = 2 * (0.8 * -0.2231435513 + 0.1 * (-2.302585093 + sure) + 0.1 * (-2.302585093 + sure - 1.791759469))
    assert parts.kd is not None
    assert float(parts.kd) == pytest.approx(wanted, rel=tolerance.float32_value * 5)
    assert max(gradient_errors(logit_NV, torch.eye(8), label_N, targets, alpha=1.0, tail=Ghost())) < 1e-5


def test_a_sure_and_right_student_has_the_float64_gradient(tolerance: Any) -> None:
    """A read-modify-write of softmax - 1 in a narrow buffer loses all of it (Liger #1329)."""
    logit_NV = torch.zeros(3, 64)
    logit_NV[:, 7] = torch.tensor([6.0, 9.0, 12.0])
    label_N = torch.tensor([7, 7, 7])
    targets = TopK(k=5)(logit_NV + torch.randn(3, 64, generator=torch.Generator().manual_seed(5)))
    assert max(gradient_errors(logit_NV, torch.eye(64), label_N, targets, alpha=0.5)) < 5 * tolerance.float32_gradient
