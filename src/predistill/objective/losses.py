"""How far the student is from a target. One primitive serves all: a loss sees J = K + 1 of the student's logits and a
few numbers over the vocabulary (kernels.reading.Student), never the vocabulary, and is differentiable in them; the
primitive turns those derivatives into the gradient of every logit. A new loss is a class here: write its value, the
gradient follows.

A loss may say more of itself: `reads(tail)` names the numbers it wants beside the usual ones ("entropy", "total",
"square": log sum exp 2z, as lse_tau_N), and `slope` gives the derivatives by hand where that is cheaper than autograd.

N positions  J columns: the target's ids, then the label  z logits  q = softmax(z)  t target  S kept ids  r rest
"""

# ruff: noqa: ARG002  (losses share their calls)

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from predistill.errors import RecipeError
from predistill.objective.kernels.reading import Student
from predistill.objective.tail import NOTHING, Tail, Target, Uniform

__all__ = ["JSD", "KLD", "MSE", "NLL", "Loss", "ReverseKLD"]

_choice = ConfigDict(extra="forbid")

FLOOR = -30.0  # nats: no probability of the target is taken for less where the student's mass is divided by it


@dataclass(frozen=True, config=_choice)
class NLL:
    """-sum t log q (arXiv 2410.16215), nats; t may sum to another number than 1. Its optimum is t, normalised: whatever
    bias t has, the student gets."""

    kind: Literal["nll"] = "nll"

    def reads(self, tail: Tail) -> tuple[str, ...]:
        """A uniform tail multiplies every log q."""
        return ("total",) if isinstance(tail, Uniform) else ()

    def __call__(self, student: Student, target: Target) -> Tensor:
        """Nats [N]."""
        # log q rather than z on its own: the value then keeps its digits when all logits share a large offset.
        gap_NJ = student.lse_N[:, None] - student.logit_NJ
        nats_N: Tensor = torch.linalg.vecdot(target.prob_NJ.to(gap_NJ.dtype), gap_NJ)
        if target.log_rest_N is not None:
            assert student.lse_outside_N is not None
            gap_N = student.lse_N - student.lse_outside_N
            return nats_N + torch.where(target.log_rest_N > NOTHING, target.log_rest_N.exp() * gap_N, 0.0)
        if target.each is not None:
            assert student.sum_N is not None
            outside_N = target.each.vocabulary * student.lse_N - student.sum_N
            outside_N = outside_N - torch.where(target.kept_NJ, gap_NJ, 0.0).sum(dim=1)
            return nats_N + target.each.logprob_N.exp() * outside_N
        return nats_N

    def slope(self, student: Student, target: Target) -> Student | None:
        """The derivatives: it is linear in what it reads."""
        prob_NJ = target.prob_NJ.to(student.logit_NJ.dtype)
        mass_N = prob_NJ.sum(dim=1)
        if target.log_rest_N is not None:
            rest_N = target.log_rest_N.exp()
            return Student(-prob_NJ, mass_N + rest_N, lse_outside_N=-rest_N)
        if target.each is not None:
            each_N = target.each.logprob_N.exp()
            inside_NJ = torch.where(target.kept_NJ, prob_NJ - each_N[:, None], 0.0)
            return Student(-inside_NJ, inside_NJ.sum(dim=1) + target.each.vocabulary * each_N, sum_N=-each_N)
        return Student(-prob_NJ, mass_N)


@dataclass(frozen=True, config=_choice)
class KLD:
    """KL(t || q) = sum t log(t / q) (arXiv 2410.16215), nats: NLL's gradient and bias, and 0 where the student
    matches.

    With tail decoupled: KL of (P, r) against (Q, 1 - Q), plus P KL of the kept entries, each side renormalised, at the
    tail's temperature.
    """

    kind: Literal["kld"] = "kld"

    def reads(self, tail: Tail) -> tuple[str, ...]:
        """As NLL."""
        return NLL().reads(tail)

    def __call__(self, student: Student, target: Target) -> Tensor:
        """Nats [N]. Raises RecipeError for sampled targets without the teacher's entropy."""
        if target.entropy_N is None:
            raise RecipeError(
                "loss kld needs the teacher's entropy, and these sampled targets have none. "
                "Use loss nll: its gradient is the same."
            )
        if target.inside_tau is not None:
            return _decoupled(student, target, target.inside_tau)
        return NLL()(student, target) - target.entropy_N

    def slope(self, student: Student, target: Target) -> Student | None:
        """NLL's; None, that is autograd's, where the target is decoupled."""
        return None if target.inside_tau is not None else NLL().slope(student, target)


@dataclass(frozen=True, config=_choice)
class ReverseKLD:
    """KL(q || t) = sum q log(q / t), nats (MiniLLM, arXiv 2306.08543).

    Over the kept ids, both renormalised (renormalise: nothing is said of the other ids, so the lm share must); over
    those and one bucket (ghost); over the vocabulary (uniform). It seeks modes: biased to what the teacher finds
    likely. Probabilities of the target below e^-30 count as e^-30.
    """

    kind: Literal["reverse_kld"] = "reverse_kld"

    def reads(self, tail: Tail) -> tuple[str, ...]:
        """Over the whole vocabulary sum q log q is needed."""
        return ("entropy",) if isinstance(tail, Uniform) else ()

    def __call__(self, student: Student, target: Target) -> Tensor:
        """Nats [N]."""
        kept_NJ, log_t_NJ = target.kept_NJ, target.logprob_NJ.clamp(min=FLOOR)
        if target.log_rest_N is None and target.each is None:
            log_q_NJ = _inside(student.logit_NJ, kept_NJ)
            return torch.where(kept_NJ, log_q_NJ.exp() * (log_q_NJ - log_t_NJ), 0.0).sum(dim=1)
        log_q_NJ = torch.where(kept_NJ, student.logit_NJ - student.lse_N[:, None], NOTHING)
        q_NJ = log_q_NJ.exp()
        if target.log_rest_N is not None:
            log_rest_N = _log_outside(student)
            inside_N = torch.where(kept_NJ, q_NJ * (log_q_NJ - log_t_NJ), 0.0).sum(dim=1)
            return inside_N + log_rest_N.exp() * (log_rest_N - target.log_rest_N.clamp(min=FLOOR))
        assert target.each is not None
        assert student.entropy_N is not None
        log_each_N = target.each.logprob_N.clamp(min=FLOOR)
        return -student.entropy_N - (q_NJ * (log_t_NJ - log_each_N[:, None])).sum(dim=1) - log_each_N


@dataclass(frozen=True, config=_choice)
class JSD:
    """beta KL(t || m) + (1 - beta) KL(q || m), m = beta t + (1 - beta) q, nats (arXiv 2306.13649).

    Bounded, so far tokens pull little; near 0 it is KLD times beta, near 1 reverse. Its optimum is t, with t's bias.
    """

    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    kind: Literal["jsd"] = "jsd"

    def reads(self, tail: Tail) -> tuple[str, ...]:
        """Nothing more: where t is 0, log(q / m) is a constant."""
        return ()

    def __call__(self, student: Student, target: Target) -> Tensor:
        """Nats [N]."""
        kept_NJ = target.kept_NJ
        log_q_NJ = torch.where(kept_NJ, student.logit_NJ - student.lse_N[:, None], NOTHING)
        log_t_NJ = torch.where(kept_NJ, target.logprob_NJ, NOTHING)
        inside_N = torch.where(kept_NJ, self._bucket(log_t_NJ, log_q_NJ), 0.0).sum(dim=1)
        if target.log_rest_N is not None:
            return inside_N + self._bucket(target.log_rest_N, _log_outside(student))
        outside_N = 1 - log_q_NJ.exp().sum(dim=1)
        return inside_N - outside_N * (1 - self.beta) * math.log1p(-self.beta)

    def _bucket(self, log_t: Tensor, log_q: Tensor) -> Tensor:
        log_m = torch.logaddexp(log_t + math.log(self.beta), log_q + math.log1p(-self.beta))
        return self.beta * log_t.exp() * (log_t - log_m) + (1 - self.beta) * log_q.exp() * (log_q - log_m)


@dataclass(frozen=True, config=_choice)
class MSE:
    """Squared error (arXiv 2410.16215 names no space); not nats.

    space = "probs": sum over the whole vocabulary of (q - t)^2. "logits": mean over the kept entries of (z - log t)^2,
    both centred on the kept entries. "logprobs": mean over the kept entries of (log q - log t)^2. Logits alone say
    nothing of the other ids: the lm share must. Bias: t's, in each.
    """

    space: Literal["probs", "logits", "logprobs"] = "probs"
    kind: Literal["mse"] = "mse"

    def reads(self, tail: Tail) -> tuple[str, ...]:
        """sum q^2 over the vocabulary is exp(lse(2z) - 2 lse(z)): one more log-sum-exp, at temperature 1/2."""
        return ("square",) if self.space == "probs" else ()

    def __call__(self, student: Student, target: Target) -> Tensor:
        """Squared error [N]."""
        if self.space == "probs":
            assert student.lse_tau_N is not None
            square_N = (student.lse_tau_N - 2 * student.lse_N).exp()
            q_NJ = (student.logit_NJ - student.lse_N[:, None]).exp()
            return square_N + (target.prob_NJ * (target.prob_NJ - 2 * q_NJ)).sum(dim=1)
        kept_N = target.kept_NJ.sum(dim=1).clamp(min=1)
        gap_NJ = torch.where(target.kept_NJ, student.logit_NJ - target.logprob_NJ, 0.0)
        centre_N = gap_NJ.sum(dim=1) / kept_N if self.space == "logits" else student.lse_N
        return torch.where(target.kept_NJ, gap_NJ - centre_N[:, None], 0.0).square().sum(dim=1) / kept_N


Loss = Annotated[NLL | KLD | ReverseKLD | JSD | MSE, Field(discriminator="kind")]


def _inside(logit_NJ: Tensor, kept_NJ: Tensor) -> Tensor:
    """Log-softmax over the kept columns, the others far below."""
    return torch.where(kept_NJ, logit_NJ, NOTHING).log_softmax(dim=1).clamp(min=NOTHING)


def _log_outside(student: Student) -> Tensor:
    """Log of the student's mass outside the kept ids; far below where there are no others."""
    assert student.lse_outside_N is not None
    return (student.lse_outside_N - student.lse_N).clamp(min=NOTHING)


def _decoupled(student: Student, target: Target, tau: float) -> Tensor:
    assert target.log_rest_N is not None
    kept_NJ, log_out_N = target.kept_NJ, _log_outside(student)
    log_in_N = torch.where(kept_NJ, student.logit_NJ, NOTHING).logsumexp(dim=1) - student.lse_N
    mass_N, rest_N = target.prob_NJ.sum(dim=1), target.log_rest_N.exp()
    log_mass_N = mass_N.log().clamp(min=NOTHING)
    two_N = mass_N * (log_mass_N - log_in_N.clamp(min=NOTHING))
    two_N = two_N + torch.where(rest_N > 0, rest_N * (target.log_rest_N - log_out_N), 0.0)
    log_t_NJ = _inside(target.logprob_NJ / tau, kept_NJ)
    log_q_NJ = _inside(student.logit_NJ / tau, kept_NJ)
    return two_N + mass_N * torch.where(kept_NJ, log_t_NJ.exp() * (log_t_NJ - log_q_NJ), 0.0).sum(dim=1)
