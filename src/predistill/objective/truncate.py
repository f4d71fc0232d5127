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
            lambda whole, _: whole.targets(ids_CK=None, logprob_CK=whole.logprob(whole.gap_CV)),
            logit_NV,
            label_N,
            tau=tau,
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
    vocabulary = whole.gap_CV.shape[1]
    bound_C1 = None
    if p is not None and p < 1:
        # Ids below (1 - p) / V have less than 1 - p between them, so the set is to be found among the others.
        bound_C1 = -whole.log_sum_C[:, None] - math.log((1 - p) / vocabulary / 2)
    ids_CK, gap_CK = _nearest(whole.gap_CV, bound_C1, min(k or vocabulary, vocabulary))
    kept_CK = gap_CK < torch.inf  # an id that the teacher rules out is nothing to keep
    if p is not None:
        up_to_CK = whole.mass_CV.gather(1, ids_CK).cumsum(dim=1, dtype=torch.float64)
        kept_CK[:, 1:] &= up_to_CK[:, :-1] < p * whole.log_sum_C[:, None].double().exp()
    width = int(kept_CK.sum(dim=1).max()) if len(kept_CK) else 1
    ids_CK, gap_CK, dropped_CK = ids_CK[:, :width], gap_CK[:, :width], ~kept_CK[:, :width]
    return whole.targets(
        ids_CK=ids_CK.masked_fill(dropped_CK, -1),
        logprob_CK=whole.logprob(gap_CK).masked_fill_(dropped_CK, 0.0),
        log_rest_C=_log_rest(whole, torch.where(dropped_CK, ids_CK[:, :1], ids_CK)),  # the first is always kept
    )


def _nearest(gap_CV: Tensor, bound_C1: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """The ids of the `count` smallest gaps, ties by id, and the gaps.

    What lies beyond the bound may be left out; positions that keep less than others are filled up with a gap of inf.
    """
    # topk leaves the order of ties open, and a bfloat16 teacher has many. One integer an entry settles it: the bits of
    # a positive float sort like the float, and the id breaks ties.
    smallest = _smallest_on_cpu if gap_CV.device.type == "cpu" and gap_CV.numel() else _smallest
    key_CK = smallest(gap_CV, bound_C1, count)
    return key_CK & 0xFFFFFFFF, (key_CK >> 32).int().view(torch.float32)


def _smallest(gap_CV: Tensor, bound_C1: Tensor | None, count: int) -> Tensor:
    """The keys of `_nearest` in order."""
    if bound_C1 is not None and gap_CV.numel():
        count = min(count, int((gap_CV <= bound_C1).sum(dim=1).max()))
    key_CV = gap_CV.view(torch.int32).long() << 32 | torch.arange(gap_CV.shape[1], device=gap_CV.device)
    return key_CV.topk(count, dim=1, largest=False).values


def _smallest_on_cpu(gap_CV: Tensor, bound_C1: Tensor | None, count: int) -> Tensor:
    """The same from numpy's selection and sort, of few candidates: a tenth of the time of torch's topk."""
    positions, vocabulary = gap_CV.shape
    if bound_C1 is None:
        bound_C1 = gap_CV.new_full((positions, 1), torch.inf)
    if count < vocabulary:
        # Of the least gaps of disjoint blocks the count-th is no smaller than the count-th of all, and hardly larger
        # where blocks are many. Ids equal modulo their number are a block; 32: so many gaps torch compares at once.
        blocks, least_CB = -(-2 * count // 32) * 32, gap_CV
        if (rows := vocabulary // blocks) > 1:
            least_CB = gap_CV[:, : rows * blocks].unflatten(1, (rows, blocks)).amin(dim=1)
        near_C1 = np.partition(least_CB.numpy(), count - 1, axis=1)[:, count - 1 : count]
        bound_C1 = bound_C1.minimum(torch.from_numpy(near_C1))
    gaps = gap_CV.numpy()
    place_E = _places(gaps <= bound_C1.numpy())
    start_C = np.arange(positions) * vocabulary
    length_C = np.diff(np.searchsorted(place_E, start_C), append=len(place_E))
    key_E = np.take(gaps.view(np.int32), place_E).astype(np.int64) << 32
    key_E |= place_E - np.repeat(start_C, length_C)
    key_CW = np.full((positions, length_C.max()), np.float32(np.inf).view(np.int32).astype(np.int64) << 32)
    key_CW[np.arange(length_C.max()) < length_C[:, None]] = key_E
    key_CW.sort(axis=1)
    return torch.from_numpy(key_CW[:, :count])


def _places(chosen_CV: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """np.flatnonzero in half the time, by eights first: where few are chosen, it branches wrongly at each."""
    if chosen_CV.size % 8:
        return np.flatnonzero(chosen_CV)
    eight_X = chosen_CV.reshape(-1).view(np.uint64)
    some_Y = np.flatnonzero(eight_X != 0)
    among_E = np.flatnonzero(eight_X[some_Y].view(np.bool_))
    place_E: npt.NDArray[np.int64] = some_Y[among_E >> 3] << 3
    place_E |= among_E & 7
    return place_E


def _log_rest(whole: Whole, kept_CK: Tensor) -> Tensor:
    """Log of the mass of all but these ids, summed over the others, because 1 - sum loses it. Uses the whole up."""
    log_rest_C = whole.mass_CV.scatter_(1, kept_CK, 0.0).sum(dim=1).log() - whole.log_sum_C
    faint_C = log_rest_C < -60  # near the end of float32, or nothing at all
    if bool(faint_C.any()):
        gap_FV = whole.gap_CV[faint_C].scatter_(1, kept_CK[faint_C], torch.inf)
        log_rest_C[faint_C] = (-gap_FV).logsumexp(dim=1) - whole.log_sum_C[faint_C]
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
        kept_NK[:, 1:] &= prob_NK.cumsum(dim=1)[:, :-1] < p
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
    ids_NK, behind_NK = _nearest(targets.logprob_NK.abs(), None, targets.logprob_NK.shape[1])
    ruled_out_NK = behind_NK == torch.inf
    return replace(
        targets,
        ids_NK=ids_NK.masked_fill(ruled_out_NK, -1),
        logprob_NK=(-behind_NK).masked_fill_(ruled_out_NK, 0.0),
        log_rest_N=torch.full_like(behind_NK[:, 0], -torch.inf),
    )
