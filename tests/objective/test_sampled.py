"""Sampled targets: unbiased, reproducible, and still unbiased when narrowed to fewer draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from predistill.errors import RecipeError
from predistill.objective import NLL, AsSampled, Sampled, SparseTargets, TopK, distill_loss

REPEATS = 4000


def logits() -> Tensor:
    generator = torch.Generator().manual_seed(21)
    logit_V = 2 * torch.randn(30, generator=generator)
    logit_V[5] = -torch.inf
    return logit_V.expand(REPEATS, -1)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(22)


def weights(targets: SparseTargets) -> Tensor:
    """[N, V], 0 for an id that was not drawn."""
    assert targets.weight_NK is not None
    dense_NV = torch.zeros(len(targets.ids_NK), 31, dtype=torch.float64)
    dense_NV.scatter_(1, targets.ids_NK + 1, targets.weight_NK.double())
    return dense_NV[:, 1:]  # padding fell on column 0


def assert_mean(found_NX: Tensor, wanted_X: Tensor, sigmas: float) -> None:
    deviation_X = found_NX.std(0) / REPEATS**0.5
    assert ((found_NX.mean(0) - wanted_X).abs() <= sigmas * deviation_X + 1e-7).all()
    assert (deviation_X[wanted_X > 1e-2] > 0).all()


@pytest.mark.parametrize("proposal_temperature", [1.0, 2.0, 0.8])
@pytest.mark.parametrize("left", [12, 5])
def test_the_weights_are_the_probabilities_on_average(proposal_temperature: float, left: int, tolerance: Any) -> None:
    generator_ = generator()
    targets = Sampled(draws=12, proposal_temperature=proposal_temperature)(logits(), generator=generator_)
    narrowed = Sampled(draws=left, proposal_temperature=proposal_temperature).narrow(targets, generator=generator_)
    weight_NV = weights(narrowed)
    assert_mean(weight_NV, logits()[0].double().softmax(0), tolerance.sigmas)
    assert not weight_NV[:, 5].any()


def test_the_sampled_loss_is_the_full_loss_on_average(tolerance: Any) -> None:
    targets = Sampled(draws=12)(logits(), generator=generator())
    student_V = torch.randn(30, dtype=torch.float64, generator=generator())
    nats = [
        distill_loss(
            student_V.expand(1, -1),
            torch.zeros(1, dtype=torch.int64),
            targets.select(slice(n, n + 1)),
            loss=NLL(),
            tail=AsSampled(),
        ).kd
        for n in range(REPEATS // 10)
    ]
    found_N = torch.stack([n for n in nats if n is not None])
    wanted = -(logits()[0].double().softmax(0) * student_V.log_softmax(0)).sum()
    assert abs(float(found_N.mean() - wanted)) < tolerance.sigmas * float(found_N.std()) / len(found_N) ** 0.5


@pytest.mark.parametrize("proposal_temperature", [1.0, 2.0])
def test_entries_are_whole_draws_of_different_ids(proposal_temperature: float) -> None:
    targets = Sampled(draws=12, proposal_temperature=proposal_temperature)(logits(), generator=generator())
    for ids in targets.ids_NK[:200].tolist():
        drawn = [i for i in ids if i >= 0]
        assert drawn == sorted(set(drawn))
        assert ids == drawn + [-1] * (len(ids) - len(drawn))
    assert targets.weight_NK is not None
    assert (targets.weight_NK > 0).equal(targets.ids_NK >= 0)
    if proposal_temperature == 1:
        count_NK = targets.weight_NK * 12
        assert (count_NK - count_NK.round()).abs().max() < 1e-5
        assert (count_NK.sum(1).round() == 12).all()
        assert targets.logprob_NK is None
        assert targets.lse_tau_N is None
    else:
        assert targets.logprob_NK is not None
        assert targets.lse_tau_N is not None
        assert float(targets.lse_tau_N[0]) == pytest.approx(
            float((logits()[0].double().log_softmax(0) / 2).logsumexp(0)), abs=1e-5
        )
    assert targets.log_rest_N is None
    assert targets.entropy_N is not None


def test_the_same_generator_gives_the_same_draws_and_another_does_not() -> None:
    first, second = (Sampled(draws=12)(logits(), generator=generator()) for _ in range(2))
    assert torch.equal(first.ids_NK, second.ids_NK)
    assert first.weight_NK is not None
    assert second.weight_NK is not None
    assert torch.equal(first.weight_NK, second.weight_NK)
    other = Sampled(draws=12)(logits(), generator=torch.Generator().manual_seed(1))
    assert not torch.equal(weights(other), weights(first))


def test_narrowing_takes_draws_that_were_made_and_leaves_absent_positions_absent() -> None:
    targets = Sampled(draws=12)(logits()[:50], generator=generator())
    targets.ids_NK[4] = -1
    assert Sampled(draws=12).narrow(targets) is targets
    narrowed = Sampled(draws=5).narrow(targets, generator=generator())
    assert narrowed.draws == 5
    assert narrowed.ids_NK.shape == targets.ids_NK.shape  # parts narrowed one by one can be joined
    for ids in narrowed.ids_NK.tolist():
        drawn = [i for i in ids if i >= 0]
        assert ids == sorted(set(drawn)) + [-1] * (len(ids) - len(drawn))
    before_NV, after_NV = weights(targets) * 12, weights(narrowed) * 5
    assert (after_NV <= before_NV + 1e-5)[torch.arange(50) != 4].all()
    assert not narrowed.present_N[4]
    assert (after_NV.sum(1).round()[torch.arange(50) != 4] == 5).all()


def test_more_draws_than_were_made_are_refused_and_so_are_truncated_targets() -> None:
    with pytest.raises(RecipeError, match="20 draws are asked for and 12 were made"):
        Sampled(draws=20).narrow(Sampled(draws=12)(logits()[:2]))
    with pytest.raises(RecipeError, match="not sampled"):
        Sampled(draws=2).narrow(TopK(k=3)(logits()[:2]))
