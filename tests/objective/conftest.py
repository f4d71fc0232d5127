"""What the tests of the objective share: one table of tolerances, random teachers, and the objective written down
densely in float64, straight from the definitions. Nothing here calls predistill's arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from predistill.objective import SparseTargets

# Nobody loosens a number here to turn a test green.
TOLERANCES = SimpleNamespace(
    float64=1e-10,  # fused against dense, relative to the largest entry
    finite_difference=1e-6,  # central difference in float64, relative
    float32_value=2e-6,  # sums of nats in float32 against float64, relative
    float32_gradient=2e-5,  # gradients in float32 against float64, relative to their norm
    bfloat16_gradient=3.5e-3,  # LOSS.md section 9: on bfloat16 operands, relative to their norm
    log_mass=2e-5,  # a log-probability or log of a mass in float32, nats
    sigmas=5.0,  # a mean of random draws against its expectation, in standard errors
)


@pytest.fixture(scope="session")
def tolerance() -> SimpleNamespace:
    return TOLERANCES


@pytest.fixture(scope="session")
def dense() -> Callable[..., Tensor]:
    return dense_kd


@pytest.fixture(scope="session")
def problem() -> Callable[..., SimpleNamespace]:
    return make_problem


def make_problem(
    *, positions: int = 23, vocabulary: int = 29, width: int = 5, kept: int = 6, dtype: torch.dtype = torch.float64
) -> SimpleNamespace:
    """A student's head, labels, and a truncated teacher, with every awkward position once.

    0: no target. 1: not counted, hidden is NaN. 2: the label is kept. 3: the label is not kept. 4: one entry kept.
    5: everything kept. 6: a kept entry of probability 0. The others keep `kept` entries.
    """
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    p_NV = (2 * normal(positions, vocabulary)).softmax(dim=1)
    p_NV[6, p_NV[6].argmax()] = 0.0
    p_NV[6] /= p_NV[6].sum()
    order_NV = p_NV.argsort(dim=1, descending=True)
    length_N = torch.full((positions,), kept)
    length_N[[0, 4, 5]] = torch.tensor([0, 1, vocabulary])
    ids_NK = order_NV.masked_fill(torch.arange(vocabulary) >= length_N[:, None], -1)
    ids_NK[6, kept - 1] = order_NV[6, -1]  # the entry of probability 0
    label_N = torch.randint(vocabulary, (positions,), generator=generator)
    label_N[1], label_N[2], label_N[3] = -100, ids_NK[2, 1], order_NV[3, -2]
    kept_NV = torch.zeros(positions, vocabulary, dtype=torch.bool)
    for position, ids in enumerate(ids_NK.tolist()):
        kept_NV[position, [i for i in ids if i >= 0]] = True
    rest_N = p_NV.masked_fill(kept_NV, 0.0).sum(dim=1)
    targets = SparseTargets(
        ids_NK=ids_NK,
        logprob_NK=p_NV.gather(1, ids_NK.clamp(min=0)).log().masked_fill(ids_NK < 0, float("nan")),
        log_rest_N=rest_N.log(),
    )
    hidden_ND = normal(positions, width)
    hidden_ND[1] = float("nan")
    problem = SimpleNamespace(
        hidden_ND=hidden_ND.to(dtype).requires_grad_(),
        weight_VD=normal(vocabulary, width).to(dtype).requires_grad_(),
        bias_V=normal(vocabulary).to(dtype).requires_grad_(),
        label_N=label_N,
        targets=targets,
        p_NV=p_NV,
        kept_NV=kept_NV,
        counted_N=label_N != -100,
    )
    problem.sampled = _sampled(p_NV, ids_NK, generator)
    return problem


def _sampled(p_NV: Tensor, ids_NK: Tensor, generator: torch.Generator) -> SparseTargets:
    """Weights that do not sum to 1, as importance weights do not."""
    weight_NK = p_NV.gather(1, ids_NK.clamp(min=0)) * (0.5 + torch.rand(ids_NK.shape, generator=generator).double())
    entropy_N = -torch.special.xlogy(p_NV, p_NV).sum(dim=1)
    return SparseTargets(ids_NK=ids_NK, weight_NK=weight_NK, entropy_N=entropy_N, draws=50)


def dense_kd(
    logit_NV: Tensor, label_N: Tensor, problem: Any, *, loss: str, space: str, tail: str, tau: float, sides: str
) -> Tensor:
    """The distillation loss [N] on full distributions: teacher p_NV cut to kept_NV, student logits [N, V]."""
    p_NV, kept_NV = problem.p_NV, problem.kept_NV
    vocabulary = p_NV.shape[1]
    one_hot_NV = torch.nn.functional.one_hot(label_N.clamp(min=0), vocabulary).double()
    rest_N = p_NV.masked_fill(kept_NV, 0.0).sum(dim=1)
    if tail == "renormalise":
        raised_NV = (p_NV ** (1 / tau)).masked_fill(~kept_NV, 0.0)
        t_NV = raised_NV / raised_NV.sum(dim=1, keepdim=True).clamp(min=1e-300)
    elif tail == "as_sampled":
        t_NV = torch.zeros_like(p_NV)
        for position, (ids, weights) in enumerate(
            zip(problem.sampled.ids_NK.tolist(), problem.sampled.weight_NK.tolist(), strict=True)
        ):
            for token, weight in zip(ids, weights, strict=True):
                if token >= 0:
                    t_NV[position, token] = weight
    else:
        t_NV = p_NV.masked_fill(~kept_NV, 0.0)
        if tail == "to_label":
            t_NV = t_NV + rest_N[:, None] * one_hot_NV
    student_tau = tau if sides == "both" else 1.0
    log_q_NV = (logit_NV / student_tau).log_softmax(dim=1)
    scale = student_tau**2

    if loss == "mse":
        if space == "probs":
            return (log_q_NV.exp() - t_NV).square().sum(dim=1)
        mask_NV = kept_NV & (p_NV > 0)
        count_N = mask_NV.sum(dim=1).clamp(min=1)

        def mean(x_NV: Tensor) -> Tensor:
            return torch.where(mask_NV, x_NV, 0.0).sum(dim=1) / count_N

        if space == "logits":
            student_NV, teacher_NV = logit_NV, p_NV.clamp(min=1e-300).log() / tau
            student_NV, teacher_NV = student_NV - mean(student_NV)[:, None], teacher_NV - mean(teacher_NV)[:, None]
            return mean((student_NV - teacher_NV).square())
        return mean((log_q_NV - t_NV.clamp(min=1e-300).log()).square())

    nats_N = -(t_NV * log_q_NV).sum(dim=1)
    entropy_N = -torch.special.xlogy(t_NV, t_NV).sum(dim=1)
    if tail == "as_sampled":
        entropy_N = problem.sampled.entropy_N
    if tail == "ghost":
        outside_N = log_q_NV.exp().masked_fill(kept_NV, 0.0).sum(dim=1)
        safe_N = torch.where(rest_N > 0, outside_N, 1.0)
        nats_N = nats_N - rest_N * safe_N.log()
        entropy_N = entropy_N - torch.special.xlogy(rest_N, rest_N)
    return scale * (nats_N - entropy_N if loss == "kld" else nats_N)
