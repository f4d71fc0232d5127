"""The teacher's whole distribution, a few positions at a time: what every truncation starts from.

N positions  C positions worked on at once  V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from predistill.errors import TeacherError
from predistill.objective.targets import SparseTargets, concatenate

__all__ = ["Whole", "by_rows", "mass"]

CHUNK_ELEMENTS = 1 << 19  # of [C, V]: the temporaries stay in a CPU's cache
WIDE_ELEMENTS = 1 << 26  # on an accelerator, which waits for itself where a step is too small


class Whole(NamedTuple):
    """A distribution over the full vocabulary in float32, and what targets tell of it."""

    gap_CV: Tensor  # nats behind the most probable id: 0 for it, inf for one that is ruled out
    mass_CV: Tensor  # exp(-gap), not normalised
    log_sum_C: Tensor  # log of the sum of mass_CV
    entropy_C: Tensor
    logit_std_C: Tensor
    label_logprob_C: Tensor | None
    lse_tau_C: Tensor | None = None
    tau: float | None = None

    def logprob(self, gap_CX: Tensor) -> Tensor:
        """Log-probabilities of ids that are so far behind."""
        return -self.log_sum_C[:, None] - gap_CX

    def targets(
        self,
        *,
        ids_CK: Tensor | None,
        logprob_CK: Tensor | None = None,
        weight_CK: Tensor | None = None,
        log_rest_C: Tensor | None = None,
        draws: int | None = None,
    ) -> SparseTargets:
        """Targets that keep these entries."""
        return SparseTargets(
            ids_NK=ids_CK,
            logprob_NK=logprob_CK,
            weight_NK=weight_CK,
            log_rest_N=log_rest_C,
            entropy_N=self.entropy_C,
            logit_std_N=self.logit_std_C,
            label_logprob_N=self.label_logprob_C,
            lse_tau_N=self.lse_tau_C,
            draws=draws,
            tau=self.tau,
        )


def by_rows(
    keep: Callable[[Whole, slice], SparseTargets],
    logit_NV: Tensor,
    label_N: Tensor | None = None,
    *,
    tau: float | None = None,
) -> SparseTargets:
    """`keep` over a few positions at a time, its targets put together. Works in float32; tau asks for lse_tau.

    Logits of -inf rule an id out. Raises TeacherError for logits that are NaN or +inf, or all -inf.
    """
    elements = CHUNK_ELEMENTS if logit_NV.device.type == "cpu" else WIDE_ELEMENTS
    step = max(1, elements // max(1, logit_NV.shape[1]))
    with torch.no_grad():
        parts = [
            keep(_whole(logit_NV[rows].float(), None if label_N is None else label_N[rows], tau), rows)
            for rows in (slice(start, start + step) for start in range(0, max(1, len(logit_NV)), step))
        ]
    return parts[0] if len(parts) == 1 else concatenate(parts)


def mass(gap_CV: Tensor, *, tau: float = 1.0) -> Tensor:
    """exp(-gap / tau)."""
    # On a CPU torch's exp2 takes half the time of its exp; it errs by 2e-8 of the mass a nat.
    return (gap_CV * (-1 / (tau * math.log(2)))).exp2_()


def _dot(left_CV: Tensor, right_CV: Tensor) -> Tensor:
    """Sums of products. On a CPU from BLAS, in half the time of torch, which writes [C, V] products first."""
    if left_CV.device.type != "cpu":
        return torch.linalg.vecdot(left_CV, right_CV)  # type: ignore[no-any-return]
    # By parts of 1,024: BLAS rounds as it adds, and of 150,000 products at once a sum was off by 3e-4 of it.
    parts = left_CV.shape[1] // 1024
    (left, left_end), (right, right_end) = (
        (side_CV[:, : parts * 1024].unflatten(1, (parts, 1024)).numpy(), side_CV[:, parts * 1024 :].numpy())
        for side_CV in (left_CV, right_CV)
    )
    with np.errstate(invalid="ignore"):  # 0 * inf is NaN, and looked for below
        return torch.from_numpy(np.vecdot(left, right).sum(axis=1) + np.vecdot(left_end, right_end))


def _whole(logit_CV: Tensor, label_C: Tensor | None, tau: float | None) -> Whole:
    # Not log_softmax: at V 49,152 torch's is off by 4e-5 on a CPU, this sum by 1e-6.
    gap_CV = logit_CV.amax(dim=1, keepdim=True) - logit_CV
    mass_CV = mass(gap_CV)
    sum_C = mass_CV.sum(dim=1)
    log_sum_C = sum_C.log()
    finite_CV: Tensor = gap_CV
    columns: Tensor | int = gap_CV.shape[1]
    surprise_C = _dot(mass_CV, gap_CV)
    if bool(surprise_C.isnan().any()):  # 0 * inf: some ids are ruled out, and count neither here nor in the spread
        ruled_out_CV = gap_CV == torch.inf
        finite_CV, columns = gap_CV.masked_fill(ruled_out_CV, 0.0), (~ruled_out_CV).sum(dim=1)
        surprise_C = _dot(mass_CV, finite_CV)
        if bool(surprise_C.isnan().any()):
            raise TeacherError(
                "The teacher gives logits that are no distribution (NaN or infinite). "
                "Check its weights, or run it in float32 or bfloat16 rather than float16."
            )
    mean_C = finite_CV.sum(dim=1) / columns
    variance_C = _dot(finite_CV, finite_CV) / columns - mean_C.square()
    label_logprob_C = None
    if label_C is not None:
        label_logprob_C = -log_sum_C - gap_CV.gather(1, label_C.clamp(min=0)[:, None])[:, 0]
    lse_tau_C = None if tau is None else mass(gap_CV, tau=tau).sum(dim=1).log() - log_sum_C / tau
    return Whole(
        gap_CV,
        mass_CV,
        log_sum_C,
        log_sum_C + surprise_C / sum_C,
        variance_C.clamp(min=0).sqrt(),
        label_logprob_C,
        lse_tau_C,
        tau,
    )
