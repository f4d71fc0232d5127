"""From a truncated, tempered teacher to the target of the loss: what becomes of the mass that was not kept.

N positions  K kept entries  J = K + 1 columns: the kept ids, then the label
"""

# ruff: noqa: ARG002  (tails share one call)

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field, PositiveFloat
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import pad

from predistill.objective.kernels.reading import column
from predistill.objective.targets import SparseTargets

__all__ = [
    "AsSampled",
    "Decoupled",
    "Each",
    "Ghost",
    "Renormalise",
    "Tail",
    "Target",
    "ToLabel",
    "Uniform",
    "Zero",
]

_choice = ConfigDict(extra="forbid")

NOTHING = -1e30  # log of no probability: exp gives 0, and 0 * NOTHING is 0 where 0 * -inf would be NaN


class Target(NamedTuple):
    """What the student should match, over J columns; padding, and a label without mass of its own, have probability 0.

    logprob_NJ = log prob_NJ, NOTHING where that is -inf, so that no product is NaN. entropy_N: nats, of all the target;
    None where it is not known. log_rest_N: log-probability of one more bucket for all that is not kept. each: the
    rest is spread evenly over the other ids. inside_tau: the kept entries are compared among themselves at this
    temperature. What stands at a position without a target is finite and means nothing.
    """

    prob_NJ: Tensor
    logprob_NJ: Tensor
    entropy_N: Tensor | None
    log_rest_N: Tensor | None = None
    each: Each | None = None
    inside_tau: float | None = None

    @property
    def kept_NJ(self) -> Tensor:
        """Which columns the teacher gave a probability, bool."""
        return self.logprob_NJ > NOTHING / 1e6  # a temperature has divided it


class Each(NamedTuple):
    """The log-probability of each id that is not kept, out of `vocabulary` ids."""

    logprob_N: Tensor
    vocabulary: int


@dataclass(frozen=True, config=_choice)
class Renormalise:
    """softmax(log p / tau) over the kept entries; the rest gets nothing (arXiv 2410.16215).

    Bias: the student is driven to p / (kept mass) and 0 elsewhere, too sure by that factor.
    """

    kind: Literal["renormalise"] = "renormalise"

    def __call__(self, targets: SparseTargets, label_N: Tensor, *, tau: float | Tensor, vocabulary: int) -> Target:
        """The target at temperature tau; label_N int64 [N] is not used."""
        scaled_NJ = _logprob(targets)
        if isinstance(tau, Tensor) or tau != 1:
            scaled_NJ /= column(tau)
        return _target(torch.log_softmax(scaled_NJ, dim=1), prob_NJ=torch.softmax(scaled_NJ, dim=1))


@dataclass(frozen=True, config=_choice)
class Zero:
    """The kept probabilities as they are: they sum to less than 1, and the rest counts for nothing.

    Bias: the same optimum as Renormalise, with a gradient of kept mass times as large.
    """

    kind: Literal["zero"] = "zero"

    def __call__(self, targets: SparseTargets, label_N: Tensor, *, tau: float | Tensor, vocabulary: int) -> Target:
        """The target at temperature tau; label_N int64 [N] is not used."""
        return _target(_tempered(targets, tau)[0])


@dataclass(frozen=True, config=_choice)
class ToLabel:
    """The mass that was not kept goes to the label (arXiv 2503.16870).

    Bias: none on average where the labels are drawn from the teacher; on real text the rest is taught as LM loss.
    """

    kind: Literal["to_label"] = "to_label"

    def __call__(self, targets: SparseTargets, label_N: Tensor, *, tau: float | Tensor, vocabulary: int) -> Target:
        """The target at temperature tau, with label_N int64 [N] receiving the rest."""
        logprob_NJ, log_rest_N = _tempered(targets, tau)
        prob_NJ, rest_N = logprob_NJ.exp(), log_rest_N.exp()
        is_label_NK = targets.columns_NK == label_N[:, None]
        prob_NJ[:, :-1] += rest_N[:, None] * is_label_NK
        prob_NJ[:, -1] = rest_N * ~is_label_NK.any(dim=1)
        return _target(prob_NJ.log(), prob_NJ=prob_NJ)


@dataclass(frozen=True, config=_choice)
class Ghost:
    """The mass that was not kept is one more bucket, against all that the student gives outside (arXiv 2503.16870).

    Bias: none in what is compared; nothing is said of how the student spreads the rest.
    """

    kind: Literal["ghost"] = "ghost"

    def __call__(self, targets: SparseTargets, label_N: Tensor, *, tau: float | Tensor, vocabulary: int) -> Target:
        """The target at temperature tau, with log_rest_N; label_N int64 [N] is not used."""
        logprob_NJ, log_rest_N = _tempered(targets, tau)
        target = _target(logprob_NJ)
        nowhere_N = target.kept_NJ.sum(dim=1) >= vocabulary  # every id is kept: what rounding left belongs to nobody
        log_rest_N = log_rest_N.masked_fill(nowhere_N, NOTHING).clamp(min=NOTHING)
        return target._replace(entropy_N=_with_rest(target, log_rest_N, log_rest_N), log_rest_N=log_rest_N)


@dataclass(frozen=True, config=_choice)
class Uniform:
    """The mass that was not kept is spread evenly over the other V - K ids.

    Bias: the shape of the tail is taken for flat; its mass is right.
    """

    kind: Literal["uniform"] = "uniform"

    def __call__(self, targets: SparseTargets, label_N: Tensor, *, tau: float | Tensor, vocabulary: int) -> Target:
        """The target at temperature tau, with `each`; label_N int64 [N] is not used."""
        logprob_NJ, log_rest_N = _tempered(targets, tau)
        target = _target(logprob_NJ)
        others_N = (vocabulary - target.kept_NJ.sum(dim=1)).clamp(min=1)
        log_each_N = (log_rest_N - others_N.to(log_rest_N.dtype).log()).clamp(min=NOTHING)
        entropy_N = _with_rest(target, log_rest_N.clamp(min=NOTHING), log_each_N)
        return target._replace(entropy_N=entropy_N, each=Each(log_each_N, vocabulary))


@dataclass(frozen=True, config=_choice)
class Decoupled:
    """KL of (kept mass, rest), plus kept mass times the KL of the kept entries among themselves at temperature `tau`
    (LFM2, arXiv 2511.23404); at tau = 1 it is Ghost. Bias: none at its optimum, as Ghost.
    """

    tau: PositiveFloat = 2.0
    kind: Literal["decoupled"] = "decoupled"

    def __call__(self, targets: SparseTargets, label_N: Tensor, *, tau: float | Tensor, vocabulary: int) -> Target:
        """Ghost's target, with inside_tau."""
        return Ghost()(targets, label_N, tau=tau, vocabulary=vocabulary)._replace(inside_tau=self.tau)


@dataclass(frozen=True, config=_choice)
class AsSampled:
    """Sampled targets: the weights are the target, unbiased as they are (arXiv 2503.16870)."""

    kind: Literal["as_sampled"] = "as_sampled"

    def __call__(self, targets: SparseTargets, label_N: Tensor, *, tau: float | Tensor, vocabulary: int) -> Target:
        """The target; label_N int64 [N] is not used, tau is 1."""
        assert targets.weight_NK is not None
        prob_NJ = pad(targets.weight_NK.masked_fill(targets.columns_NK < 0, 0.0), (0, 1))
        return _target(prob_NJ.log(), prob_NJ=prob_NJ)._replace(entropy_N=targets.entropy_N)


Tail = Annotated[Renormalise | Ghost | ToLabel | Uniform | Zero | Decoupled | AsSampled, Field(discriminator="kind")]


def _logprob(targets: SparseTargets) -> Tensor:
    """Log-probabilities over J columns, NOTHING at padding and for the label."""
    assert targets.logprob_NK is not None, "sampled targets go with the tail as_sampled"
    logprob_NK = targets.logprob_NK
    if targets.ids_NK is not None:
        logprob_NK = torch.where(targets.ids_NK >= 0, logprob_NK, NOTHING)
    return pad(logprob_NK, (0, 1), value=NOTHING)


def _tempered(targets: SparseTargets, tau: float | Tensor) -> tuple[Tensor, Tensor]:
    """(logprob_NJ, log_rest_N) of the whole distribution at temperature tau: exact, for lse_tau is of all of it."""
    logprob_NJ = _logprob(targets)
    nothing_N = torch.full_like(logprob_NJ[:, 0], -torch.inf)
    if not isinstance(tau, Tensor) and tau == 1:
        return logprob_NJ, nothing_N if targets.log_rest_N is None else targets.log_rest_N
    scaled_NJ = logprob_NJ / column(tau)
    if targets.whole:
        return scaled_NJ.log_softmax(dim=1), nothing_N
    assert targets.lse_tau_N is not None
    scaled_NJ -= targets.lse_tau_N[:, None]
    # What is left over is small at most where it hardly counts; float64 keeps what float32 gave.
    left_N = 1 - scaled_NJ.double().exp().sum(dim=1)
    return scaled_NJ, left_N.clamp(min=0).log().to(scaled_NJ.dtype)


def _target(logprob_NJ: Tensor, *, prob_NJ: Tensor | None = None) -> Target:
    """The target with these log-probabilities, which it takes over; prob_NJ where it is known, for exp is slow where it
    underflows."""
    logprob_NJ.clamp_(min=NOTHING)
    if prob_NJ is None:
        prob_NJ = logprob_NJ.exp()
    return Target(prob_NJ, logprob_NJ, entropy_N=-torch.linalg.vecdot(prob_NJ, logprob_NJ))


def _with_rest(target: Target, log_rest_N: Tensor, log_each_N: Tensor) -> Tensor:
    """The entropy of a target with a rest whose parts have log-probability log_each."""
    assert target.entropy_N is not None
    return target.entropy_N - log_rest_N.exp() * log_each_N
