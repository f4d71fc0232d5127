"""Targets as values: which positions have one, and selecting."""

from __future__ import annotations

import torch

from predistill.objective import All, Sampled, SparseTargets, TopP


def targets() -> SparseTargets:
    logit_NV = 3 * torch.randn(12, 20, generator=torch.Generator().manual_seed(31))
    found = TopP(p=0.9)(logit_NV, torch.arange(12))
    found.ids_NK[4] = -1
    return found


def test_a_position_distils_when_it_has_a_target() -> None:
    wanted_N = torch.arange(12) != 4
    assert torch.equal(targets().present_N, wanted_N)
    assert torch.equal(All()(targets()), wanted_N)
    assert not SparseTargets(torch.empty(3, 0, dtype=torch.int64)).present_N.any()


def test_selecting_takes_every_column_along() -> None:
    whole = targets()
    for choice in (torch.tensor([7, 2]), slice(3, 9), torch.arange(12) % 2 == 0):
        part = whole.select(choice)
        for name in ("ids_NK", "logprob_NK", "log_rest_N", "entropy_N", "logit_std_N", "label_logprob_N"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[choice])
    assert Sampled(draws=7)(torch.zeros(2, 5)).select(slice(1)).draws == 7
