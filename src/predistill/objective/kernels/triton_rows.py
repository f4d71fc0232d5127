"""The primitive as two Triton kernels, one program a row: a pass that reads all that is asked for, one that writes.

Where the torch backend keeps softmaxes, this one keeps the logits and a few numbers a row, and takes the exponentials
anew: moving bytes is what costs. Exponentials are of z minus the highest logit of the row, never of z minus a
log-sum-exp, whose float32 rounding is a thousandth of the gradient where logits are near 1e4.

C positions  V vocabulary, in a kernel one block of it  J columns: the target's ids, then the label
"""
# Triton has no types, and need not be installed where types are checked.
# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from predistill.objective.kernels.reading import (
    Reads,
    Scratch,
    Student,
    kept_gradient,
    mask_kept_,
    outside_weights,
    with_kept,
)
from predistill.objective.kernels.triton_kernels import read_rows, write_rows

__all__ = ["Reading", "block_rows", "read_", "write_gradient_"]

BLOCK_V = 4096  # with 8 warps: 16 logits a thread, four loads of 16 bytes
MERGED_J = 1024  # columns at most that are merged in registers
TILE_JI = 4096  # comparisons of columns with columns at a time
LAUNCH = {"num_warps": 8, "enable_fp_fusion": True}  # the latter by name: Triton 3.9 warns where it is not given


class Reading(NamedTuple):
    """What was read, and what the second pass needs; where ids are kept, the masses are outside of those only.

    tau_C, mass_tau_C and mean_C are there where another temperature (tau) or the entropy (tau = 1) is asked for.
    """

    student: Student
    ids_CJ: Tensor
    reads: Reads
    softcap: float | None
    logit_CV: Tensor  # as given, not capped; -inf at the kept ids
    highest_C: Tensor  # of the capped logits
    mass_C: Tensor  # sum exp (z - highest), at least 1
    outside_C: Tensor | None  # log-sum-exp outside the kept ids at temperature 1
    tau_C: Tensor | None
    mass_tau_C: Tensor | None
    mean_C: Tensor | None  # of z - highest under softmax(z / tau)


def block_rows(vocabulary: int, device: torch.device) -> int | None:  # noqa: ARG001
    """How many positions to read at once; None: all of a chunk."""
    return None


def read_(
    logit_CV: Tensor,
    ids_CJ: Tensor,
    reads: Reads,
    scratch: Scratch,  # noqa: ARG001  (the kernels need no room of their own)
    *,
    softcap: float | None = None,
) -> Reading:
    """Read the logits, capped first, at ids_CJ (several columns may name one id); the logits are lost.

    logit_CV is float32, its rows contiguous and any stride apart.
    """
    assert logit_CV.dtype == torch.float32
    assert logit_CV.stride(1) == 1
    rows, vocabulary = logit_CV.shape
    tau_C = None
    logit_CJ = logit_CV.gather(1, ids_CJ)
    if reads.kept_CJ is not None:
        mask_kept_(logit_CV, ids_CJ, reads)
    if softcap is not None:
        logit_CJ = (logit_CJ / softcap).tanh_().mul_(softcap)
    if reads.tempered or reads.entropy:
        tau_C = logit_CV.new_ones(rows).mul_(reads.tau)
    numbers_5C = logit_CV.new_empty(5, rows)
    with torch.cuda.device_of(logit_CV):
        read_rows[(rows,)](
            logit_CV,
            logit_CV.stride(0),
            vocabulary,
            tau_C,
            1.0 if softcap is None else softcap,
            numbers_5C,
            CAPPED=softcap is not None,
            TEMPERED=tau_C is not None,
            ENTROPY=reads.entropy,
            TOTAL=reads.total,
            BLOCK_V=_block(vocabulary),
            **LAUNCH,
        )
    highest_C, mass_C, mass_tau_C, moment_C, sum_C = numbers_5C
    lse_C = highest_C + mass_C.log()
    lse_tau_C = highest_C / reads.tau + mass_tau_C.log() if reads.tempered else None
    mean_C = entropy_C = outside_C = outside_tau_C = None
    if reads.entropy:
        mean_C = moment_C / mass_tau_C
        entropy_C = mass_tau_C.log() - mean_C / reads.tau
    if reads.kept_CJ is not None:
        outside_C, outside_tau_C = lse_C, lse_C if lse_tau_C is None else lse_tau_C
        lse_C = with_kept(logit_CJ, reads, lse_C)
        if lse_tau_C is not None:
            lse_tau_C = with_kept(logit_CJ, reads, lse_tau_C, tau=reads.tau)
    student = Student(logit_CJ, lse_C, lse_tau_C, outside_tau_C, entropy_C, sum_C if reads.total else None)
    return Reading(
        student,
        ids_CJ,
        reads,
        softcap,
        logit_CV,
        highest_C,
        mass_C.clamp(min=1),  # the highest logit alone is 1; nothing at all is 0
        outside_C,
        tau_C,
        None if tau_C is None else mass_tau_C.clamp(min=1),
        mean_C,
    )


def write_gradient_(reading: Reading, by: Student, *, dtype: torch.dtype | None = None) -> Tensor:
    """Put the gradient of the logits where they were, and return it; `by`: the derivatives of f in what was read.

    None: in float32, over the logits. bfloat16, float16: into the first half of each row, as a view [C, V] whose rows
    are twice as many entries apart; every entry is rounded once.
    """
    student, reads, logit_CV = reading.student, reading.reads, reading.logit_CV
    rows, vocabulary = logit_CV.shape
    gradient_CV = logit_CV if dtype is None else logit_CV.view(dtype)[:, :vocabulary]
    by_C, by_tau_C, by_CJ = by.lse_N, by.lse_tau_N, by.logit_NJ
    if reads.kept_CJ is not None:
        assert reading.outside_C is not None
        by_CJ = by_CJ + kept_gradient(student, reads, by)
        by_C, by_tau_C = outside_weights(student, by, outside_C=reading.outside_C)
    if reading.softcap is not None:
        by_CJ = by_CJ * (1 - (student.logit_NJ / reading.softcap).square())
    # Columns are merged in the kernel; here where the target is the whole vocabulary: no more than two columns name an
    # id then, the kept one and the label's, so that the order in which they are added makes no difference.
    ids_CJ, merged = reading.ids_CJ.contiguous(), by_CJ.shape[1] <= MERGED_J
    block_J = triton.next_power_of_2(by_CJ.shape[1]) if merged else 1
    if not merged:
        by_CJ = logit_CV.new_zeros(rows, vocabulary).scatter_add_(1, ids_CJ, by_CJ)

    # dz = weight exp(below) + (weight_tau + tilt below) exp(below / tau) + by_sum, where below = z - highest
    zero_C = torch.zeros_like(reading.highest_C)
    by_sum_C = zero_C if by.sum_N is None else by.sum_N
    numbers = [reading.highest_C, by_C / reading.mass_C, by_sum_C]
    if reading.tau_C is not None:
        assert reading.mass_tau_C is not None
        per_C = 1 / (reading.tau_C * reading.mass_tau_C)
        weight_tau_C, tilt_C = zero_C if by_tau_C is None else by_tau_C * per_C, zero_C
        if by.entropy_N is not None:  # log q_tau + H = (z - its mean under q_tau) / tau
            assert reading.mean_C is not None
            tilt_C = -by.entropy_N * per_C / reading.tau_C
            weight_tau_C = weight_tau_C - tilt_C * reading.mean_C
        numbers += [1 / reading.tau_C, weight_tau_C, tilt_C]
    with torch.cuda.device_of(logit_CV):
        write_rows[(rows,)](
            logit_CV,
            logit_CV.stride(0),
            gradient_CV,
            gradient_CV.stride(0),
            vocabulary,
            ids_CJ,
            by_CJ.contiguous(),
            by_CJ.shape[1],
            torch.stack(numbers),
            1.0 if reading.softcap is None else reading.softcap,
            CAPPED=reading.softcap is not None,
            TEMPERED=reading.tau_C is not None,
            MERGED=merged,
            BLOCK_V=_block(vocabulary),
            BLOCK_J=block_J,
            BLOCK_I=TILE_JI // block_J,
            **LAUNCH,
        )
    return gradient_CV


def _block(vocabulary: int) -> int:
    return min(BLOCK_V, int(triton.next_power_of_2(vocabulary)))
