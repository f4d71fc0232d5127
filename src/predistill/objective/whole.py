"""The teacher's whole distribution, a few positions at a time: what every truncation starts from.

N positions  C positions worked on at once  V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from predistill.errors import TeacherError
from predistill.objective.targets import SparseTargets, concatenate

__all__ = ["Whole", "by_rows"]

CHUNK_ELEMENTS = 1 << 20  # of [C, V]: the temporaries stay in a CPU's cache
WIDE_ELEMENTS = 1 << 26  # on an accelerator, which waits for itself where a step is too small


class Whole(NamedTuple):
    """A float32 distribution over the full vocabulary, and what targets tell of it."""

    logprob_CV: Tensor
    prob_CV: Tensor
    entropy_C: Tensor
    logit_std_C: Tensor
    label_logprob_C: Tensor | None
    lse_tau_C: Tensor | None = None
    tau: float | None = None

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


def _whole(logit_CV: Tensor, label_C: Tensor | None, tau: float | None) -> Whole:
    logprob_CV = torch.log_softmax(logit_CV, dim=1)
    prob_CV = logprob_CV.exp()
    entropy_C = -torch.linalg.vecdot(prob_CV, logprob_CV)
    finite_CV, columns = logprob_CV, torch.tensor(logprob_CV.shape[1])
    if bool(entropy_C.isnan().any()):  # 0 * -inf: some ids are ruled out, and count neither here nor in the spread
        ruled_out_CV = logprob_CV == -torch.inf
        finite_CV, columns = logprob_CV.masked_fill(ruled_out_CV, 0.0), (~ruled_out_CV).sum(dim=1)
        entropy_C = -torch.linalg.vecdot(prob_CV, finite_CV)
        if bool(entropy_C.isnan().any()):
            raise TeacherError(
                "The teacher gives logits that are no distribution (NaN or infinite). "
                "Check its weights, or run it in float32 or bfloat16 rather than float16."
            )
    mean_C = finite_CV.sum(dim=1) / columns
    variance_C = torch.linalg.vecdot(finite_CV, finite_CV) / columns - mean_C.square()
    label_logprob_C = None
    if label_C is not None:
        label_logprob_C = logprob_CV.gather(1, label_C.clamp(min=0)[:, None])[:, 0]
    lse_tau_C = None if tau is None else (logprob_CV / tau).logsumexp(dim=1)
    return Whole(logprob_CV, prob_CV, entropy_C, variance_C.clamp(min=0).sqrt(), label_logprob_C, lse_tau_C, tau)
