"""Which entries of the teacher's distribution are kept: at capture from logits, and again, narrower, from kept entries.

N positions  C positions worked on at once  V vocabulary  K most entries kept at one position
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from predistill.errors import RecipeError
from predistill.objective.sampled import Sampled
from predistill.objective.targets import SparseTargets
from predistill.objective.whole import Whole, by_rows

__all__ = ["Full", "Sampled", "TopK", "TopP", "TopPK", "Truncation"]

_choice = ConfigDict(extra="forbid")
Mass = Annotated[float, Field(gt=0, le=1)]

MASS_TOLERANCE = 2e-3  # of the kept mass read back from a store's grid


@dataclass(frozen=True, config=_choice)
class Full:
    """The whole distribution: dense targets, four bytes an id and position. No bias, and every temperature is exact.

    For teachers that run beside the student; no store is as wide.
    """

    kind: Literal["full"] = "full"

    def __call__(self, logit_NV: Tensor, label_N: Tensor | None = None, *, tau: float | None = None) -> SparseTargets:
        """Dense targets of logits [N, V] of any float type; label_N fills label_logprob_N, tau lse_tau_N."""
        return by_rows(
            lambda whole, _: whole.targets(ids_CK=None, logprob_CK=whole.logprob_CV), logit_NV, label_N, tau=tau
        )

    def narrow(self, targets: SparseTargets) -> SparseTargets:
        """Dense targets as they are. RecipeError where anything was left out."""
        if targets.whole:
            return targets
        raise RecipeError("Truncated targets cannot be made full: choose the truncation that they were kept with.")


@dataclass(frozen=True, config=_choice)
class TopK:
    """The k most probable ids.

    Biased: renormalised, each kept probability is too large by 1 / (kept mass), and the tail learns nothing
    (arXiv 2503.16870); the tails ghost, to_label and uniform give the rest a place.
    """

    k: PositiveInt
    kind: Literal["top_k"] = "top_k"

    def __call__(self, logit_NV: Tensor, label_N: Tensor | None = None, *, tau: float | None = None) -> SparseTargets:
        """Targets of logits [N, V] of any float type; label_N fills label_logprob_N, tau lse_tau_N."""
        return by_rows(lambda whole, _: _cut(whole, p=None, k=self.k), logit_NV, label_N, tau=tau)

    def narrow(self, targets: SparseTargets) -> SparseTargets:
        """The same cut of targets already kept. RecipeError where they hold too little for it."""
        return _narrow(targets, p=None, k=self.k, wanted=f"top_k with k {self.k}")


@dataclass(frozen=True, config=_choice)
class TopP:
    """The smallest set of most probable ids whose mass is at least p (arXiv 1904.09751).

    Renormalised, each kept probability is too large by at most 1 / p; how many ids that takes varies by position.
    """

    p: Mass
    kind: Literal["top_p"] = "top_p"

    def __call__(self, logit_NV: Tensor, label_N: Tensor | None = None, *, tau: float | None = None) -> SparseTargets:
        """Targets of logits [N, V] of any float type; label_N fills label_logprob_N, tau lse_tau_N."""
        return by_rows(lambda whole, _: _cut(whole, p=self.p, k=None), logit_NV, label_N, tau=tau)

    def narrow(self, targets: SparseTargets) -> SparseTargets:
        """The same cut of targets already kept. RecipeError where they hold too little for it."""
        return _narrow(targets, p=self.p, k=None, wanted=f"top_p with p {self.p:g}")


@dataclass(frozen=True, config=_choice)
class TopPK:
    """Top-p, then at most the k most probable of that (arXiv 2410.16215: .95 and 100).

    Bounded in size like TopK, and biased like it where k cuts first: a flat teacher keeps far less than p.
    """

    p: Mass
    k: PositiveInt
    kind: Literal["top_p_k"] = "top_p_k"

    def __call__(self, logit_NV: Tensor, label_N: Tensor | None = None, *, tau: float | None = None) -> SparseTargets:
        """Targets of logits [N, V] of any float type; label_N fills label_logprob_N, tau lse_tau_N."""
        return by_rows(lambda whole, _: _cut(whole, p=self.p, k=self.k), logit_NV, label_N, tau=tau)

    def narrow(self, targets: SparseTargets) -> SparseTargets:
        """The same cut of targets already kept. RecipeError where they hold too little for it."""
        return _narrow(targets, p=self.p, k=self.k, wanted=f"top_p_k with p {self.p:g} and k {self.k}")


Truncation = Annotated[Full | TopK | TopP | TopPK | Sampled, Field(discriminator="kind")]


def _cut(whole: Whole, *, p: float | None, k: int | None) -> SparseTargets:
    vocabulary = whole.logprob_CV.shape[1]
    width = vocabulary
    if k is not None:
        width = min(k, vocabulary)
    elif p is not None and len(whole.prob_CV):
        # Ids below (1 - p) / V have less than 1 - p between them, so the set is to be found among the others.
        width = int((whole.prob_CV >= (1 - p) / vocabulary / 2).sum(dim=1).max())
    ids_CK = _most_probable(whole.logprob_CV, width)
    logprob_CK = whole.logprob_CV.gather(1, ids_CK)
    kept_CK = logprob_CK > -torch.inf  # an id that the teacher rules out is nothing to keep
    if p is not None:
        kept_CK &= _mass_before(logprob_CK.double().exp()) < p
    width = int(kept_CK.sum(dim=1).max()) if len(kept_CK) else 1
    ids_CK, logprob_CK, kept_CK = ids_CK[:, :width], logprob_CK[:, :width], kept_CK[:, :width]
    return whole.targets(
        ids_CK=ids_CK.masked_fill(~kept_CK, -1),
        logprob_CK=logprob_CK.masked_fill(~kept_CK, 0.0),
        log_rest_C=_log_rest(whole, ids_CK, kept_CK),
    )


def _most_probable(logprob_CV: Tensor, count: int) -> Tensor:
    """The first `count` ids by probability, then by id."""
    # topk leaves the order of ties open, and a bfloat16 teacher has many. One integer an entry settles it: the bits of
    # a positive float sort like the float, and the id breaks ties.
    bits_CV, vocabulary = logprob_CV.abs().view(torch.int32), logprob_CV.shape[1]
    if bits_CV.device.type == "cpu" and 0 < count < vocabulary and len(bits_CV):
        return torch.from_numpy(_smallest(bits_CV.numpy(), count))
    key_CV = bits_CV.long() * vocabulary + torch.arange(vocabulary, device=bits_CV.device)
    return key_CV.topk(count, dim=1, largest=False).values % vocabulary


def _smallest(bits_CV: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.int64]:
    """The ids of the `count` smallest of each position, ties by id: numpy's selection and sort take a quarter to a half
    of the time of torch's topk on a CPU."""
    vocabulary = bits_CV.shape[1]
    bound_C1 = np.partition(bits_CV, count - 1, axis=1)[:, count - 1 : count]
    chosen_CV = bits_CV <= bound_C1  # the smallest, and what ties with the last of them
    length_C = np.count_nonzero(chosen_CV, axis=1)
    place_E = np.flatnonzero(chosen_CV)
    ids_E = place_E - np.repeat(np.arange(len(bits_CV)) * vocabulary, length_C)
    key_CW: npt.NDArray[np.int64] = np.full((len(bits_CV), length_C.max()), np.iinfo(np.int64).max)
    key_CW[np.arange(length_C.max()) < length_C[:, None]] = (
        bits_CV.ravel()[place_E].astype(np.int64) * vocabulary + ids_E
    )
    key_CW.sort(axis=1)
    ids_CK: npt.NDArray[np.int64] = key_CW[:, :count] % vocabulary
    return ids_CK


def _mass_before(prob_CK: Tensor) -> Tensor:
    """The mass of the entries in front of each."""
    mass_CK = torch.zeros_like(prob_CK)
    torch.cumsum(prob_CK[:, :-1], dim=1, out=mass_CK[:, 1:])
    return mass_CK


def _log_rest(whole: Whole, ids_CK: Tensor, kept_CK: Tensor) -> Tensor:
    """Log of the mass that is not kept, summed over what is not kept, because 1 - sum loses it."""
    # An entry that is not kept is written back as it is, so that positions of any length share one call.
    left_CV = whole.prob_CV.scatter(1, ids_CK, whole.prob_CV.gather(1, ids_CK).masked_fill_(kept_CK, 0.0))
    log_rest_C = left_CV.sum(dim=1).log()
    faint_C = log_rest_C < -60  # near the end of float32, or nothing at all
    if bool(faint_C.any()):
        faint_FV, ids_FK = whole.logprob_CV[faint_C], ids_CK[faint_C]
        faint_FV.scatter_(1, ids_FK, faint_FV.gather(1, ids_FK).masked_fill_(kept_CK[faint_C], -torch.inf))
        log_rest_C[faint_C] = faint_FV.logsumexp(dim=1)
    return log_rest_C


def _narrow(targets: SparseTargets, *, p: float | None, k: int | None, wanted: str) -> SparseTargets:
    """A prefix of every position; what is dropped joins the rest."""
    if targets.whole:
        targets = _cut_dense(targets)
    if targets.ids_NK is None or targets.logprob_NK is None or targets.log_rest_N is None or targets.sampled:
        raise RecipeError(f"Sampled targets cannot be cut to {wanted}: use truncation sampled.")
    stored_NK = targets.ids_NK >= 0
    prob_NK = targets.logprob_NK.double().exp().masked_fill_(~stored_NK, 0.0)
    kept_NK = stored_NK.clone()
    enough_N = (targets.log_rest_N == -torch.inf) | ~targets.present_N
    if p is not None:
        kept_NK &= _mass_before(prob_NK) < p
        enough_N |= -targets.log_rest_N.expm1() >= p - MASS_TOLERANCE
    if k is not None:
        kept_NK[:, k:] = False
        enough_N |= stored_NK.sum(dim=1) >= k
    enough_N |= (kept_NK != stored_NK).any(dim=1)
    if not bool(enough_N.all()):
        short = int((~enough_N).nonzero()[0])
        raise RecipeError(
            f"The kept entries are too few for {wanted}: position {short} keeps {int(stored_NK[short].sum())} and "
            f"leaves out {math.exp(float(targets.log_rest_N[short])):.3g} of the mass. "
            "Choose a narrower truncation, or capture again with a wider one."
        )
    width = max(1, int(kept_NK.sum(dim=1).max())) if len(kept_NK) else 1
    dropped_N = prob_NK.masked_fill(kept_NK, 0.0).sum(dim=1).log().to(targets.log_rest_N.dtype)
    return replace(
        targets,
        ids_NK=targets.ids_NK.masked_fill(~kept_NK, -1)[:, :width],
        logprob_NK=targets.logprob_NK.masked_fill(~kept_NK, 0.0)[:, :width],
        log_rest_N=torch.logaddexp(targets.log_rest_N, dropped_N),
    )


def _cut_dense(targets: SparseTargets) -> SparseTargets:
    """Dense targets in descending order, as if everything had been kept."""
    assert targets.logprob_NK is not None
    ids_NK = _most_probable(targets.logprob_NK, targets.logprob_NK.shape[1])
    logprob_NK = targets.logprob_NK.gather(1, ids_NK)
    ruled_out_NK = logprob_NK == -torch.inf
    return replace(
        targets,
        ids_NK=ids_NK.masked_fill(ruled_out_NK, -1),
        logprob_NK=logprob_NK.masked_fill(ruled_out_NK, 0.0),
        log_rest_N=torch.full_like(logprob_NK[:, 0], -torch.inf),
    )
