"""What the tests of the objective share: one table of tolerances, random teachers, and the objective written down
densely in float64, straight from the definitions. Nothing here calls predistill's arithmetic."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from predistill.objective import SparseTargets

ROW_LEN = 8

# Nobody loosens a number here to turn a test green.
TOLERANCES = SimpleNamespace(
    float64=1e-10,  # fused against dense, relative to the largest entry
    finite_difference=1e-6,  # central difference in float64, relative
    float32_value=2e-6,  # sums of nats in float32 against float64, relative
    float32_gradient=2e-5,  # gradients in float32 against float64, relative to their norm
    float32_near=5e-5,  # the same of any loss where a student within .02 of the teacher makes q - t cancel
    bfloat16_gradient=3.5e-3,  # on bfloat16 and float16 operands, relative to their norm
    log_mass=2e-5,  # a log-probability or log of a mass in float32, nats
    sigmas=5.0,  # a mean of random draws against its expectation, in standard errors
)


@pytest.fixture(scope="session")
def tolerance() -> SimpleNamespace:
    return TOLERANCES


@pytest.fixture(scope="session")
def dense() -> Callable[..., Tensor]:
    return dense_kd


@pytest.fixture(scope="session", name="targets_for")
def _targets_for() -> Callable[..., tuple[SparseTargets, Tensor]]:
    return targets_for


@pytest.fixture(scope="session")
def dense_positions() -> Callable[..., Tensor]:
    return chosen_positions


@pytest.fixture(scope="session")
def problem() -> Callable[..., SimpleNamespace]:
    return make_problem


def make_problem(
    *, positions: int = 24, vocabulary: int = 29, width: int = 5, kept: int = 6, dtype: torch.dtype = torch.float64
) -> SimpleNamespace:
    """A student's head, labels, and a truncated teacher, with every awkward position once; rows of ROW_LEN.

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
    log_p_NV = p_NV.log()
    statistics = {
        "entropy_N": -torch.special.xlogy(p_NV, p_NV).sum(dim=1),
        "logit_std_N": torch.stack([row[row > -torch.inf].std(correction=0) for row in log_p_NV]),
    }
    targets = SparseTargets(
        ids_NK=ids_NK,
        logprob_NK=log_p_NV.gather(1, ids_NK.clamp(min=0)).masked_fill(ids_NK < 0, float("nan")),
        log_rest_N=rest_N.log(),
        **statistics,
    )
    hidden_ND = normal(positions, width)
    hidden_ND[1] = float("nan")
    weight_NK = p_NV.gather(1, ids_NK.clamp(min=0)) * (0.5 + torch.rand(ids_NK.shape, generator=generator).double())
    return SimpleNamespace(
        hidden_ND=hidden_ND.to(dtype).requires_grad_(),
        weight_VD=normal(vocabulary, width).to(dtype).requires_grad_(),
        bias_V=normal(vocabulary).to(dtype).requires_grad_(),
        label_N=label_N,
        targets=targets,
        # weights that do not sum to 1, as importance weights do not
        sampled=SparseTargets(ids_NK, weight_NK=weight_NK, entropy_N=statistics["entropy_N"], draws=50),
        whole=SparseTargets(None, logprob_NK=log_p_NV, **statistics),
        p_NV=p_NV,
        kept_NV=kept_NV & (p_NV > 0),
        counted_N=label_N != -100,
    )


def targets_for(problem: Any, tail: Any, temperature: Any) -> tuple[SparseTargets, Tensor]:
    """(targets that go with tail and temperature, kept_NV of them)."""
    if tail.kind == "as_sampled":
        return problem.sampled, problem.kept_NV
    if tail.kind in ("renormalise", "decoupled") or (temperature.kind == "static" and temperature.value == 1):
        return problem.targets, problem.kept_NV
    if temperature.kind in ("static", "wttm"):
        lse_N = (problem.p_NV ** (1 / temperature.value)).sum(dim=1).log()
        return dataclasses.replace(problem.targets, lse_tau_N=lse_N, tau=temperature.value), problem.kept_NV
    return problem.whole, problem.p_NV > 0


def dense_kd(
    logit_NV: Tensor, label_N: Tensor, problem: Any, kept_NV: Tensor, *, loss: Any, tail: Any, temperature: Any
) -> Tensor:
    """The distillation loss [N] on full distributions: teacher p_NV, of which kept_NV is kept, student logits."""
    p_NV = problem.p_NV
    teacher_tau, student_tau, factor = _temperatures(logit_NV, problem, kept_NV, temperature)
    t_NV, rest_N = _target(problem, kept_NV, label_N, tail, teacher_tau)
    log_q_NV = (logit_NV / student_tau).log_softmax(dim=1)
    q_NV = log_q_NV.exp()

    if loss.kind == "mse":
        if loss.space == "probs":
            return (q_NV - t_NV).square().sum(dim=1)
        count_N = kept_NV.sum(dim=1).clamp(min=1)

        def mean(x_NV: Tensor) -> Tensor:
            return torch.where(kept_NV, x_NV, 0.0).sum(dim=1) / count_N

        if loss.space == "logits":
            student_NV, teacher_NV = logit_NV, p_NV.clamp(min=1e-300).log() / teacher_tau
            student_NV, teacher_NV = student_NV - mean(student_NV)[:, None], teacher_NV - mean(teacher_NV)[:, None]
            return mean((student_NV - teacher_NV).square())
        return mean((log_q_NV - t_NV.clamp(min=1e-300).log()).square())

    if tail.kind in ("ghost", "decoupled"):  # one bucket for what is not kept
        t_NV = torch.cat((t_NV, rest_N[:, None]), dim=1)
        outside_N1 = torch.where(kept_NV, 0.0, q_NV).sum(dim=1, keepdim=True)
        q_NV = torch.cat((torch.where(kept_NV, q_NV, 0.0), outside_N1), dim=1)
    if loss.kind == "reverse_kld" and tail.kind == "renormalise":
        q_NV = torch.where(kept_NV, q_NV, 0.0)
        q_NV = q_NV / q_NV.sum(dim=1, keepdim=True).clamp(min=1e-300)
    kd_N = factor * _divergence(t_NV, q_NV, problem, loss=loss, tail=tail)
    if tail.kind == "decoupled":
        t_in_NV, q_in_NV = (
            (x_NV / tail.tau).masked_fill(~kept_NV, -1e30).softmax(dim=1) for x_NV in (p_NV.log(), logit_NV)
        )
        two_way_N = _kl(torch.stack((1 - rest_N, rest_N), 1), torch.stack((1 - outside_N1[:, 0], outside_N1[:, 0]), 1))
        kd_N = two_way_N + (1 - rest_N) * _kl(t_in_NV, q_in_NV)
    return kd_N


def _temperatures(logit_NV: Tensor, problem: Any, kept_NV: Tensor, temperature: Any) -> tuple[Any, Any, Any]:
    """(teacher's tau, student's tau, factor)."""
    if temperature.kind == "static":
        both = temperature.sides == "both"
        return temperature.value, temperature.value if both else 1.0, temperature.value**2 if both else 1.0
    if temperature.kind == "wttm":
        return temperature.value, 1.0, torch.where(kept_NV, problem.p_NV ** (1 / temperature.value), 0.0).sum(dim=1)
    if temperature.kind == "norm_kd":
        teacher_N1 = temperature.scale * problem.targets.logit_std_N[:, None]
        student_N1 = temperature.scale * logit_NV.detach().std(dim=1, correction=0, keepdim=True)
        return teacher_N1, student_N1.clamp(min=1e-3), teacher_N1[:, 0] ** 2
    statistic_N = problem.targets.logit_std_N if temperature.kind == "std" else problem.targets.entropy_N
    tau_N = temperature.value * (statistic_N / temperature.reference) ** temperature.strength
    return tau_N.clamp(temperature.low, temperature.high)[:, None], 1.0, 1.0


def _target(problem: Any, kept_NV: Tensor, label_N: Tensor, tail: Any, tau: Any) -> tuple[Tensor, Tensor]:
    """(t_NV, the mass that was not kept)."""
    raised_NV = problem.p_NV ** (1 / tau)
    if tail.kind == "renormalise":
        raised_NV = raised_NV.masked_fill(~kept_NV, 0.0)
    p_NV = raised_NV / raised_NV.sum(dim=1, keepdim=True).clamp(min=1e-300)
    vocabulary = p_NV.shape[1]
    rest_N = p_NV.masked_fill(kept_NV, 0.0).sum(dim=1)
    t_NV = p_NV.masked_fill(~kept_NV, 0.0)
    if tail.kind == "to_label":
        t_NV = t_NV + rest_N[:, None] * torch.nn.functional.one_hot(label_N.clamp(min=0), vocabulary)
    if tail.kind == "uniform":
        others_N = (vocabulary - kept_NV.sum(dim=1)).clamp(min=1)
        t_NV = torch.where(kept_NV, t_NV, (rest_N / others_N)[:, None])
    if tail.kind == "as_sampled":
        t_NV = torch.zeros_like(p_NV)
        for position, (ids, weights) in enumerate(
            zip(problem.sampled.ids_NK.tolist(), problem.sampled.weight_NK.tolist(), strict=True)
        ):
            for token, weight in zip(ids, weights, strict=True):
                if token >= 0:
                    t_NV[position, token] = weight
    return t_NV, rest_N


def _divergence(t_NV: Tensor, q_NV: Tensor, problem: Any, *, loss: Any, tail: Any) -> Tensor:
    if loss.kind == "reverse_kld":
        floor_NV = t_NV.clamp(min=math.exp(-30))
        return torch.where(q_NV > 0, q_NV * (q_NV.clamp(min=1e-300).log() - floor_NV.log()), 0.0).sum(dim=1)
    if loss.kind == "jsd":
        m_NV = loss.beta * t_NV + (1 - loss.beta) * q_NV
        return loss.beta * _kl(t_NV, m_NV) + (1 - loss.beta) * _kl(q_NV, m_NV)
    nats_N = -torch.where(t_NV > 0, t_NV * q_NV.clamp(min=1e-300).log(), 0.0).sum(dim=1)
    if loss.kind == "nll":
        return nats_N
    if tail.kind == "as_sampled":
        return nats_N - problem.sampled.entropy_N
    return nats_N + torch.special.xlogy(t_NV, t_NV).sum(dim=1)


def _kl(a_NV: Tensor, b_NV: Tensor) -> Tensor:
    log_NV = a_NV.clamp(min=1e-300).log() - b_NV.clamp(min=1e-300).log()
    return torch.where(a_NV > 0, a_NV * log_NV, 0.0).sum(dim=1)


def chosen_positions(positions: Any, able_N: Tensor, logit_NV: Tensor, problem: Any) -> Tensor:
    """Which positions distil, row by row, straight from the words."""
    if positions.kind == "all":
        return able_N
    entropy_N = problem.targets.entropy_N
    if positions.kind == "top_student_entropy":
        entropy_N = torch.distributions.Categorical(logits=logit_NV.detach()).entropy()
    chosen_N = torch.zeros_like(able_N)
    for start in range(0, len(able_N), ROW_LEN):
        able = [n for n in range(start, start + ROW_LEN) if able_N[n]]
        able.sort(key=lambda n: -float(entropy_N[n]))
        dropped = math.floor(positions.frac * len(able) + 1e-9)
        count = len(able) - dropped
        if positions.kind == "top_student_entropy":
            count = math.ceil(positions.frac * len(able) - 1e-9)
        chosen_N[able[:count]] = True
    return chosen_N
