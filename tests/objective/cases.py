"""The combinations that are allowed, and what the tests of the fused head do with them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from predistill.objective import (
    JSD,
    WTTM,
    All,
    DropLowTeacherEntropy,
    EntropyScaled,
    NormKD,
    SparseTargets,
    Static,
    StdScaled,
    TopStudentEntropy,
    linear_distill_loss,
)
from predistill.objective.combine import refusal
from predistill.objective.table import LOSSES, TAILS

ROW_LEN = 8
TEMPERATURES = (
    Static(value=1.0),
    Static(value=2.0),
    Static(value=0.3),
    Static(value=2.0, sides="both"),
    Static(value=0.5, sides="both"),
    Static(value=3.0, sides="both"),
    NormKD(scale=0.8),
    WTTM(value=1.7),
    StdScaled(value=1.2, strength=1.0, low=0.7, high=2.5, reference=2.0),
    EntropyScaled(value=1.1, strength=-0.5, low=0.5, high=3.0, reference=2.0),
)
POSITIONS = (All(), TopStudentEntropy(frac=0.4), DropLowTeacherEntropy(frac=0.3))
ALLOWED = [
    pytest.param(loss, tail, temperature, id=f"{loss}-{tail.kind}-{temperature}")
    for loss in (*LOSSES, JSD(beta=0.2))
    for tail in TAILS
    for temperature in TEMPERATURES
    if refusal(loss, tail, temperature) is None
]


def close(found: Tensor, wanted: Tensor, limit: float) -> None:
    scale = wanted.detach().abs().max().clamp(min=1e-3)
    assert torch.isfinite(found).all()
    assert (found.detach() - wanted.detach()).abs().max() <= limit * scale


def fp32_case(problem: Any, **sizes: int) -> Any:
    case = problem(dtype=torch.float32, **sizes)
    tensors = {name: getattr(case.targets, name).float() for name in ("logprob_NK", "log_rest_N")}
    case.targets = dataclasses.replace(case.targets, **tensors)
    return case


def outcome(case: Any, targets: SparseTargets | None, **choices: Any) -> tuple[Tensor, ...]:
    parts = linear_distill_loss(case.hidden_ND, case.weight_VD, case.label_N, targets, bias_V=case.bias_V, **choices)
    return parts.total, parts.lm, *torch.autograd.grad(parts.total, (case.hidden_ND, case.weight_VD, case.bias_V))
