"""How far the student is from a target. One primitive serves all: a loss sees J = K + 1 of the student's logits and up
to three log-sum-exps, never the vocabulary, and is differentiable in them; the primitive turns those derivatives into
the gradient of every logit. A new loss is a class here: write its value, the gradient follows.

N positions  J columns: the target's ids, then the label  z logits  q = softmax(z)  t target
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from predistill.errors import RecipeError
from predistill.objective.tail import Target

__all__ = ["KLD", "MSE", "NLL", "Loss", "Student"]

_choice = ConfigDict(extra="forbid")


class Student(NamedTuple):
    """What a loss may know of the student: its logits at the target's ids and the label, and lse_N = log sum exp z.

    lse_tau_N = log sum exp(z / tau) for the one other temperature that is asked for, lse_outside_N = log sum exp z
    outside the target's ids; None where not asked for.
    """

    logit_NJ: Tensor
    lse_N: Tensor
    lse_tau_N: Tensor | None = None
    lse_outside_N: Tensor | None = None


@dataclass(frozen=True, config=_choice)
class NLL:
    """-sum t log q (PAPER section 1); t may sum to another number than 1."""

    kind: Literal["nll"] = "nll"

    def __call__(self, student: Student, target: Target) -> Tensor:
        """Nats [N]."""
        # log q rather than z on its own: the value then keeps its digits when all logits share a large offset.
        nats_N = (target.prob_NJ * (student.lse_N[:, None] - student.logit_NJ)).sum(dim=1)
        if target.rest_N is None:
            return nats_N
        assert student.lse_outside_N is not None
        return nats_N + torch.where(target.rest_N > 0, target.rest_N * (student.lse_N - student.lse_outside_N), 0.0)


@dataclass(frozen=True, config=_choice)
class KLD:
    """KL(t || q) = sum t log(t / q) (PAPER section 1): NLL's gradient, and 0 for a student that matches."""

    kind: Literal["kld"] = "kld"

    def __call__(self, student: Student, target: Target) -> Tensor:
        """Nats [N]. Raises RecipeError for sampled targets without the teacher's entropy."""
        if target.entropy_N is None:
            raise RecipeError(
                "loss kld needs the teacher's entropy, and these sampled targets have none. "
                "Use loss nll: its gradient is the same."
            )
        return NLL()(student, target) - target.entropy_N


@dataclass(frozen=True, config=_choice)
class MSE:
    """Squared error (PAPER section 1 names no space).

    space = "probs": sum over the whole vocabulary of (q - t)^2. "logits": mean over the kept entries of (z - log t)^2,
    both centred on the kept entries. "logprobs": mean over the kept entries of (log q - log t)^2.
    """

    space: Literal["probs", "logits", "logprobs"] = "probs"
    kind: Literal["mse"] = "mse"

    def __call__(self, student: Student, target: Target) -> Tensor:
        """Squared error [N]; not nats."""
        if self.space == "probs":
            assert student.lse_tau_N is not None
            # sum q^2 over the vocabulary is exp(lse(2z) - 2 lse(z)): one more log-sum-exp, at temperature 1/2.
            square_N = (student.lse_tau_N - 2 * student.lse_N).exp()
            q_NJ = (student.logit_NJ - student.lse_N[:, None]).exp()
            return square_N + (target.prob_NJ * (target.prob_NJ - 2 * q_NJ)).sum(dim=1)
        kept_N = target.kept_NJ.sum(dim=1).clamp(min=1)
        gap_NJ = torch.where(target.kept_NJ, student.logit_NJ - target.logprob_NJ, 0.0)
        centre_N = gap_NJ.sum(dim=1) / kept_N if self.space == "logits" else student.lse_N
        return torch.where(target.kept_NJ, gap_NJ - centre_N[:, None], 0.0).square().sum(dim=1) / kept_N


Loss = Annotated[NLL | KLD | MSE, Field(discriminator="kind")]
