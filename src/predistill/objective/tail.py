"""From a truncated, tempered teacher to the target of the loss: what becomes of the mass that was not kept.

N positions  K kept entries  J = K + 1 columns: the kept ids, then the label
"""

# ruff: noqa: ARG002  (tails share one call)

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import pad

from predistill.objective.targets import SparseTargets

__all__ = ["AsSampled", "Ghost", "Renormalise", "Tail", "Target", "ToLabel", "Zero"]

_choice = ConfigDict(extra="forbid")

NOTHING = -1e30  # log of no probability: exp gives 0, and 0 * NOTHING is 0 where 0 * -inf would be NaN


class Target(NamedTuple):
    """What the student should match, over J columns; padding, and a label without mass of its own, have probability 0.

    logprob_NJ = log prob_NJ, NOTHING where that is -inf, so that no product is NaN. rest_N and log_rest_N: one more
    bucket for all that is not kept, or None. entropy_N, nats, of prob and rest together; None where it is not known.
    What stands at a position without a target is finite and means nothing.
    """

    prob_NJ: Tensor
    logprob_NJ: Tensor
    entropy_N: Tensor | None
    rest_N: Tensor | None = None
    log_rest_N: Tensor | None = None

    @property
    def kept_NJ(self) -> Tensor:
        """Which columns the teacher gave a probability, bool."""
        return self.logprob_NJ > NOTHING / 1e6  # a temperature has divided it


@dataclass(frozen=True, config=_choice)
class Renormalise:
    """softmax(log p / tau) over the kept entries; the rest gets nothing (PAPER section 1)."""

    kind: Literal["renormalise"] = "renormalise"

    def __call__(self, targets: SparseTargets, label_N: Tensor, *, temperature: float) -> Target:
        """The target; label_N int64 [N] is not used."""
        scaled_NJ = _logprob(targets)
        if temperature != 1:
            scaled_NJ /= temperature
        return _target(torch.log_softmax(scaled_NJ, dim=1), prob_NJ=torch.softmax(scaled_NJ, dim=1))


@dataclass(frozen=True, config=_choice)
class Zero:
    """The kept probabilities as they are: they sum to less than 1, and the rest counts for nothing."""

    kind: Literal["zero"] = "zero"

    def __call__(self, targets: SparseTargets, label_N: Tensor, *, temperature: float) -> Target:
        """The target; label_N int64 [N] is not used."""
        assert temperature == 1.0, "a truncated teacher cannot be tempered"
        return _target(_logprob(targets))


@dataclass(frozen=True, config=_choice)
class ToLabel:
    """The mass that was not kept goes to the label (PAPER section 6, repairs of top-k)."""

    kind: Literal["to_label"] = "to_label"

    def __call__(self, targets: SparseTargets, label_N: Tensor, *, temperature: float) -> Target:
        """The target, with label_N int64 [N] receiving the rest."""
        assert temperature == 1.0, "a truncated teacher cannot be tempered"
        assert targets.log_rest_N is not None
        prob_NJ = _logprob(targets).exp()
        rest_N = targets.log_rest_N.exp()
        is_label_NK = targets.ids_NK == label_N[:, None]
        prob_NJ[:, :-1] += rest_N[:, None] * is_label_NK
        prob_NJ[:, -1] = rest_N * ~is_label_NK.any(dim=1)
        return _target(prob_NJ.log(), prob_NJ=prob_NJ)


@dataclass(frozen=True, config=_choice)
class Ghost:
    """The mass that was not kept is one more bucket, against all that the student gives outside (PAPER section 6)."""

    kind: Literal["ghost"] = "ghost"

    def __call__(self, targets: SparseTargets, label_N: Tensor, *, temperature: float) -> Target:
        """The target, with rest_N; label_N int64 [N] is not used."""
        assert temperature == 1.0, "a truncated teacher cannot be tempered"
        assert targets.log_rest_N is not None
        target = _target(_logprob(targets))
        rest_N, log_rest_N = targets.log_rest_N.exp(), targets.log_rest_N.clamp(min=NOTHING)
        assert target.entropy_N is not None
        return target._replace(entropy_N=target.entropy_N - rest_N * log_rest_N, rest_N=rest_N, log_rest_N=log_rest_N)


@dataclass(frozen=True, config=_choice)
class AsSampled:
    """Sampled targets: the weights are the target, unbiased as they are (arXiv 2503.16870)."""

    kind: Literal["as_sampled"] = "as_sampled"

    def __call__(self, targets: SparseTargets, label_N: Tensor, *, temperature: float) -> Target:
        """The target; label_N int64 [N] is not used."""
        assert temperature == 1.0
        assert targets.weight_NK is not None
        prob_NJ = pad(targets.weight_NK.masked_fill(targets.ids_NK < 0, 0.0), (0, 1))
        return _target(prob_NJ.log(), prob_NJ=prob_NJ)._replace(entropy_N=targets.entropy_N)


Tail = Annotated[Renormalise | ToLabel | Ghost | Zero | AsSampled, Field(discriminator="kind")]


def _logprob(targets: SparseTargets) -> Tensor:
    """Log-probabilities over J columns, NOTHING at padding and for the label."""
    assert targets.logprob_NK is not None, "sampled targets go with the tail as_sampled"
    return pad(torch.where(targets.ids_NK >= 0, targets.logprob_NK, NOTHING), (0, 1), value=NOTHING)


def _target(logprob_NJ: Tensor, *, prob_NJ: Tensor | None = None) -> Target:
    """The target with these log-probabilities, which it takes over; prob_NJ where it is known, for exp is slow where it
    underflows."""
    logprob_NJ.clamp_(min=NOTHING)
    if prob_NJ is None:
        prob_NJ = logprob_NJ.exp()
    return Target(prob_NJ, logprob_NJ, entropy_N=-(prob_NJ * logprob_NJ).sum(dim=1))
