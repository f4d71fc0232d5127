"""Fused equals reference for any shape: sizes, chunks, supports, entries named twice, students far and near."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from predistill.objective import (
    SparseTargets,
    distill_loss,
    linear_distill_loss,
)
from predistill.objective.combine import needs_all
from tests.objective.cases import ALLOWED, POSITIONS, close


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_fused_equals_reference_for_any_shape_and_any_awkward_position(tolerance: Any, data: Any) -> None:
    rows, vocabulary = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 33))
    positions, width, kept = rows * 3, data.draw(st.integers(1, 4)), data.draw(st.integers(1, vocabulary))
    loss, tail, temperature = data.draw(st.sampled_from([case.values for case in ALLOWED]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    teacher_NV = 3 * torch.randn(positions, vocabulary, dtype=torch.float64, generator=generator)
    spread = data.draw(st.sampled_from([1.0, 1e-3]))  # a student far away, and one that is nearly there
    weight_VD = torch.randn(vocabulary, width, dtype=torch.float64, generator=generator)
    hidden_ND = torch.randn(positions, width, dtype=torch.float64, generator=generator)
    bias_V = torch.randn(vocabulary, dtype=torch.float64, generator=generator)
    if spread < 1:
        teacher_NV = hidden_ND @ weight_VD.T + bias_V
        hidden_ND = hidden_ND + spread
    label_N = torch.randint(vocabulary, (positions,), generator=generator)
    label_N[torch.rand(positions, generator=generator) < 0.2] = -100
    targets = _targets(teacher_NV, kept, tail, temperature, generator)
    inputs = [x.requires_grad_() for x in (hidden_ND, weight_VD, bias_V)]
    choices = {
        "loss": loss,
        "tail": tail,
        "temperature": temperature,
        "positions": data.draw(st.sampled_from(POSITIONS if not targets.sampled else POSITIONS[:2])),
        "alpha": data.draw(st.sampled_from([0.0, 0.4, 1.0])),
        "row_len": 3,
        "z_loss": data.draw(st.sampled_from([0.0, 1e-2])),
    }
    fused = linear_distill_loss(
        hidden_ND, weight_VD, label_N, targets, bias_V=bias_V, chunk_tokens=data.draw(st.integers(1, 13)), **choices
    )
    reference = distill_loss(hidden_ND @ weight_VD.T + bias_V, label_N, targets, **choices)
    close(fused.total, reference.total, tolerance.float64)
    found, wanted = (torch.autograd.grad(parts.total, inputs) for parts in (fused, reference))
    for a, b in zip(found, wanted, strict=True):
        close(a, b, tolerance.float64)


def _targets(teacher_NV: Tensor, kept: int, tail: Any, temperature: Any, generator: torch.Generator) -> SparseTargets:
    """Targets in float64, some positions without any; entries named twice are put together."""
    logprob_NV = teacher_NV.log_softmax(dim=1)
    statistics = {
        "entropy_N": -(logprob_NV.exp() * logprob_NV).sum(dim=1),
        "logit_std_N": logprob_NV.std(dim=1, correction=0),
    }
    if needs_all(tail, temperature) and temperature.kind not in ("static", "wttm"):
        return SparseTargets(None, logprob_NK=logprob_NV, **statistics)
    ids_NK = logprob_NV.topk(kept).indices
    logprob_NK = logprob_NV.gather(1, ids_NK)
    rest_N = logprob_NV.exp().scatter(1, ids_NK, 0.0).sum(dim=1)
    if kept > 2:  # the first entry once more, as from an engine that lists the label by itself
        ids_NK, logprob_NK = torch.cat((ids_NK, ids_NK[:, :1]), 1), torch.cat((logprob_NK, logprob_NK[:, :1]), 1)
    ids_NK[torch.rand(len(ids_NK), generator=generator) < 0.2] = -1
    if tail.kind == "as_sampled":
        return SparseTargets(ids_NK, weight_NK=logprob_NK.exp() * 1.1, draws=9, **statistics).unique()
    tau = getattr(temperature, "value", 1.0)
    return SparseTargets(
        ids_NK,
        logprob_NK=logprob_NK,
        log_rest_N=rest_N.log(),
        lse_tau_N=(logprob_NV / tau).logsumexp(dim=1),
        tau=tau,
        **statistics,
    ).unique()
