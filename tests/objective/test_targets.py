"""Targets as values: which positions have one, and selecting."""

from __future__ import annotations

from dataclasses import replace

import torch

from predistill.objective import All, Full, Sampled, SparseTargets, TopP, TopPK, linear_distill_loss


def targets() -> SparseTargets:
    logit_NV = 3 * torch.randn(12, 20, generator=torch.Generator().manual_seed(31))
    found = TopP(p=0.9)(logit_NV, torch.arange(12))
    found.columns_NK[4] = -1
    return found


def test_a_position_distils_when_it_has_a_target() -> None:
    wanted_N = torch.arange(12) != 4
    assert torch.equal(targets().present_N, wanted_N)
    assert torch.equal(All()(targets(), wanted_N), wanted_N)
    assert not SparseTargets(torch.empty(3, 0, dtype=torch.int64)).present_N.any()
    assert Full()(torch.zeros(3, 4)).present_N.all()


def test_equal_ids_are_put_together_log_probabilities_kept_and_weights_added() -> None:
    ids_NK = torch.tensor([[5, 2, 5, -1], [1, 3, 0, 1], [-1, -1, -1, -1]])
    prob_NK = torch.tensor([[0.3, 0.4, 0.2, 0.9], [0.4, 0.3, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0]])
    found = SparseTargets(ids_NK, logprob_NK=prob_NK.log(), log_rest_N=torch.zeros(3)).unique()
    assert found.columns_NK.tolist() == [[2, 5, -1, -1], [1, 3, 0, -1], [-1, -1, -1, -1]]
    kept_NK = found.columns_NK >= 0
    assert torch.allclose(found.logprob_NK.exp()[kept_NK], torch.tensor([0.4, 0.3, 0.4, 0.3, 0.1]))  # type: ignore[union-attr]
    sampled = SparseTargets(ids_NK, weight_NK=prob_NK, draws=10).unique()
    assert sampled.columns_NK.tolist() == [[2, 5, -1, -1], [0, 1, 3, -1], [-1, -1, -1, -1]]
    assert torch.allclose(sampled.weight_NK[0, :2], torch.tensor([0.4, 0.5]))  # type: ignore[index]
    once = targets()
    assert torch.equal(once.unique().columns_NK[5], once.columns_NK[5])


def test_ids_of_32_bits_are_as_good_as_of_64() -> None:
    wide, label_N = targets(), torch.arange(12)
    assert wide.ids_NK is not None
    narrow = replace(wide, ids_NK=wide.ids_NK.int())
    weight_VD = torch.randn(20, 5, generator=torch.Generator().manual_seed(32), requires_grad=True)
    found = []
    for each in (wide, narrow, narrow.unique(), TopPK(p=0.9, k=20).narrow(narrow)):
        total = linear_distill_loss(weight_VD.detach()[:12], weight_VD, label_N, each, alpha=0.9).total
        found.append((total.detach(), *torch.autograd.grad(total, weight_VD)))
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


def test_selecting_takes_every_column_along() -> None:
    whole = targets()
    for choice in (torch.tensor([7, 2]), slice(3, 9), torch.arange(12) % 2 == 0):
        part = whole.select(choice)
        for name in ("ids_NK", "logprob_NK", "log_rest_N", "entropy_N", "logit_std_N", "label_logprob_N"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[choice])
    assert Sampled(draws=7)(torch.zeros(2, 5)).select(slice(1)).draws == 7
