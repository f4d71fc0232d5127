"""Laws of the losses and of the tails that make their targets, on a handful of numbers a position."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from predistill.objective import (
    JSD,
    KLD,
    MSE,
    NLL,
    Decoupled,
    Ghost,
    Renormalise,
    ReverseKLD,
    SparseTargets,
    Static,
    ToLabel,
    TopK,
    TopPK,
    Uniform,
    Zero,
    distill_loss,
)
from predistill.objective.tail import Target

V = 40


def teacher() -> Tensor:
    return 2 * torch.randn(15, V, dtype=torch.float64, generator=torch.Generator().manual_seed(41))


def student() -> Tensor:
    return torch.randn(15, V, dtype=torch.float64, generator=torch.Generator().manual_seed(42)).requires_grad_()


def label() -> Tensor:
    return torch.arange(15) * 2


def targets() -> SparseTargets:
    return TopPK(p=0.9, k=12)(teacher())


def kd(logit_NV: Tensor, **choices: Any) -> Tensor:
    found = distill_loss(logit_NV, label(), targets(), alpha=1.0, **choices)
    assert found.kd is not None
    return found.kd


@pytest.mark.parametrize("temperature", [Static(), Static(value=2.0), Static(value=2.0, sides="both")])
def test_nll_and_kld_have_one_gradient(temperature: Any, tolerance: Any) -> None:
    logit_NV = student()
    gradients = [
        torch.autograd.grad(
            distill_loss(logit_NV, label(), targets(), alpha=1.0, loss=loss, temperature=temperature).total, logit_NV
        )[0]
        for loss in (NLL(), KLD())
    ]
    assert (gradients[0] - gradients[1]).abs().max() < tolerance.float64


@pytest.mark.parametrize("tail", [Renormalise(), ToLabel(), Ghost()], ids=lambda tail: tail.kind)
def test_kld_is_not_negative_and_its_gradient_sums_to_zero_over_the_vocabulary(tail: Any) -> None:
    logit_NV = student()
    parts = distill_loss(logit_NV, label(), targets(), alpha=1.0, tail=tail)
    assert parts.kd is not None
    assert float(parts.kd) > 0
    (gradient_NV,) = torch.autograd.grad(parts.total, logit_NV)
    assert gradient_NV.sum(1).abs().max() < 1e-6


def test_a_student_that_is_the_teacher_has_no_ghost_loss_but_a_renormalised_one() -> None:
    assert abs(float(kd(teacher(), tail=Ghost()))) < 1e-4
    wanted = -torch.log1p(-targets().log_rest_N.exp()).sum()  # type: ignore[union-attr]
    assert float(kd(teacher())) == pytest.approx(float(wanted), rel=1e-4)


def test_ghost_is_a_lower_bound_of_the_whole_divergence() -> None:
    whole = torch.nn.functional.kl_div(
        student().detach().log_softmax(1), teacher().log_softmax(1), log_target=True, reduction="sum"
    )
    assert 0 < float(kd(student().detach(), tail=Ghost())) < float(whole)


def test_zero_is_the_kept_mass_times_renormalise() -> None:
    """Same optimum, P times the gradient."""
    logit_NV = student()
    gradients = []
    for tail in (Zero(), Renormalise()):
        total = distill_loss(logit_NV, label(), targets(), alpha=1.0, tail=tail).total
        gradients.append(torch.autograd.grad(total, logit_NV)[0])
    kept_N = -targets().log_rest_N.expm1()  # type: ignore[union-attr]
    assert (gradients[0] - kept_N[:, None] * gradients[1]).abs().max() < 1e-6


@pytest.mark.parametrize("space", ["probs", "logits", "logprobs"])
def test_mse_is_zero_for_a_student_that_matches(space: Any) -> None:
    everything = TopPK(p=1.0, k=V)(teacher())
    found = distill_loss(teacher() + 3.0, label(), everything, alpha=1.0, loss=MSE(space=space)).kd
    assert found is not None
    assert abs(float(found)) < 1e-6


def everything() -> SparseTargets:
    return TopPK(p=1.0, k=V)(teacher())


@pytest.mark.parametrize("tail", [Renormalise(), Ghost(), Uniform()], ids=lambda tail: tail.kind)
@pytest.mark.parametrize("loss", [ReverseKLD(), JSD(beta=0.3), KLD()], ids=lambda loss: loss.kind)
def test_a_divergence_is_zero_for_a_student_that_matches_and_positive_otherwise(loss: Any, tail: Any) -> None:
    if isinstance(loss, JSD) and isinstance(tail, Uniform):
        return  # refused
    matching = distill_loss(teacher() + 3.0, label(), everything(), alpha=1.0, loss=loss, tail=tail).kd
    far = distill_loss(student().detach(), label(), everything(), alpha=1.0, loss=loss, tail=tail).kd
    assert matching is not None
    assert far is not None
    assert abs(float(matching)) < 1e-4 < float(far)


def test_jsd_is_bounded_and_symmetric_where_its_sides_are_equal() -> None:
    far = 50 * torch.nn.functional.one_hot(torch.arange(15) % V, V).float()
    other = 50 * torch.nn.functional.one_hot((torch.arange(15) + 1) % V, V).float()
    found = distill_loss(far, label(), TopK(k=V)(other), alpha=1.0, loss=JSD()).kd
    assert float(found) == pytest.approx(15 * math.log(2), rel=1e-4)  # type: ignore[arg-type]
    there = distill_loss(student().detach(), label(), TopK(k=V)(teacher()), alpha=1.0, loss=JSD()).kd
    back = distill_loss(teacher(), label(), TopK(k=V)(student().detach()), alpha=1.0, loss=JSD()).kd
    assert float(there) == pytest.approx(float(back), rel=1e-4)  # type: ignore[arg-type]


def test_decoupled_at_temperature_one_is_ghost() -> None:
    ghost, decoupled = (kd(student().detach(), tail=tail) for tail in (Ghost(), Decoupled(tau=1.0)))
    assert float(decoupled) == pytest.approx(float(ghost), rel=1e-5)
    assert abs(float(kd(student().detach(), tail=Decoupled(tau=2.0))) - float(ghost)) > 1e-2


@pytest.mark.parametrize("tau", [0.05, 0.5, 1.0, 5.0])
def test_tails_share_out_the_mass_they_should(tau: float) -> None:
    found = TopPK(p=0.8, k=6)(teacher(), tau=tau)

    def target(tail: Any) -> Target:
        made: Target = tail(found, label(), tau=tau, vocabulary=V)
        return made

    renormalised = target(Renormalise())
    assert (renormalised.prob_NJ.sum(1) - 1).abs().max() < 1e-5
    assert not renormalised.prob_NJ[:, -1].any()
    tempered_NV = (teacher().double() / tau).softmax(dim=1)
    kept_N = tempered_NV.gather(1, found.columns_NK.clamp(min=0)).masked_fill(found.columns_NK < 0, 0.0).sum(1)
    assert (target(ToLabel()).prob_NJ.sum(1) - 1).abs().max() < 1e-5
    assert (target(Zero()).prob_NJ.sum(1) - kept_N).abs().max() < 1e-5
    ghost, uniform = target(Ghost()), target(Uniform())
    assert ghost.log_rest_N is not None
    assert (ghost.log_rest_N.exp() - (1 - kept_N)).abs().max() < 1e-5
    assert uniform.each is not None
    assert (uniform.each.logprob_N.exp() * (V - found.length_N) - (1 - kept_N)).abs().max() < 1e-5


def test_a_low_temperature_makes_the_target_the_teachers_choice() -> None:
    target = Renormalise()(targets(), label(), tau=0.01, vocabulary=V)
    assert (target.prob_NJ[:, 0] > 0.99).float().mean() > 0.8
    assert torch.isfinite(target.logprob_NJ).all()


def test_without_targets_the_loss_is_cross_entropy(tolerance: Any) -> None:
    logit_NV, label_N = student(), label()
    label_N[3] = -100
    parts = distill_loss(logit_NV, label_N)
    wanted = torch.nn.functional.cross_entropy(logit_NV, label_N, reduction="sum")
    assert float(parts.total.detach()) == pytest.approx(float(wanted.detach()), rel=tolerance.float64)
    assert int(parts.count) == 14
    assert parts.kd is parts.kl is None
