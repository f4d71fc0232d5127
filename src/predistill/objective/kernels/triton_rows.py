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
import triton.language as tl
from torch import Tensor

from predistill.objective.kernels.reading import Reads, Scratch, Student, column, kept_gradient, outside_weights

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
    kept_CJ, tau_C = reads.kept_CJ, None
    logit_CJ = logit_CV.gather(1, ids_CJ)
    if kept_CJ is not None:
        assert not reads.entropy
        assert not reads.total
        logit_CV.scatter_add_(1, ids_CJ, torch.zeros_like(logit_CJ).masked_fill_(kept_CJ, -torch.inf))
    if softcap is not None:
        logit_CJ = (logit_CJ / softcap).tanh_().mul_(softcap)
    if reads.tempered or reads.entropy:
        tau_C = logit_CV.new_ones(rows).mul_(reads.tau)
    numbers_5C = logit_CV.new_empty(5, rows)
    with torch.cuda.device_of(logit_CV):
        _read_rows[(rows,)](
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
    if kept_CJ is not None:
        # The mass outside is never 1 - sum q: that is wrong by nats once the student is sure (LOSS.md section 3).
        outside_C, outside_tau_C = lse_C, lse_C if lse_tau_C is None else lse_tau_C
        inside_CJ = logit_CJ.masked_fill(~kept_CJ, -torch.inf)
        lse_C = torch.logaddexp(inside_CJ.logsumexp(dim=1), lse_C)
        if lse_tau_C is not None:
            lse_tau_C = torch.logaddexp((inside_CJ / column(reads.tau)).logsumexp(dim=1), lse_tau_C)
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
        _write_rows[(rows,)](
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


@triton.jit
def _read_rows(
    logit,
    row_stride,
    vocabulary,
    tau,
    softcap,
    numbers,  # [5, C]: highest logit, mass, mass at tau, sum of (z - highest) exp ((z - highest) / tau), sum of z
    CAPPED: tl.constexpr,
    TEMPERED: tl.constexpr,
    ENTROPY: tl.constexpr,
    TOTAL: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    logit += row * row_stride
    # Sums stay one a lane until the end: of the reductions across warps, only the highest logit needs one a block.
    highest = tl.full((), -1e30, tl.float32)  # finite, for the differences where a whole block is masked
    mass_V = tl.zeros((BLOCK_V,), tl.float32)
    mass_tau_V, moment_V, total_V = mass_V, mass_V, mass_V
    inverse = 1.0 / tl.load(tau + row) if TEMPERED else 1.0
    for start in range(0, vocabulary, BLOCK_V):
        v_V = start + tl.arange(0, BLOCK_V)
        z_V = _capped(tl.load(logit + v_V, v_V < vocabulary, other=float("-inf")), softcap, CAPPED)
        before, highest = highest, tl.maximum(highest, tl.max(z_V, axis=0))
        shift = before - highest
        below_V = _below(z_V, highest)
        mass_V = mass_V * tl.exp(shift) + tl.exp(below_V)
        if TEMPERED:
            factor, exp_V = tl.exp(shift * inverse), tl.exp(below_V * inverse)
            if ENTROPY:
                moment_V = (moment_V + shift * mass_tau_V) * factor + below_V * exp_V
            mass_tau_V = mass_tau_V * factor + exp_V
        if TOTAL:
            total_V += tl.where(v_V < vocabulary, z_V, 0.0)

    numbers += row
    tl.store(numbers, highest)
    tl.store(numbers + rows, tl.sum(mass_V, axis=0))
    if TEMPERED:
        tl.store(numbers + 2 * rows, tl.sum(mass_tau_V, axis=0))
    if ENTROPY:
        tl.store(numbers + 3 * rows, tl.sum(moment_V, axis=0))
    if TOTAL:
        tl.store(numbers + 4 * rows, tl.sum(total_V, axis=0))


@triton.jit
def _write_rows(
    logit,
    row_stride,
    gradient,
    gradient_stride,
    vocabulary,
    ids,
    by,  # [C, J], or where not MERGED [C, V]: columns that name one id added up
    columns,
    numbers,  # [3 or 6, C]: highest logit, weight, derivative in sum z, 1 / tau, weight at tau, tilt
    softcap,
    CAPPED: tl.constexpr,
    TEMPERED: tl.constexpr,
    MERGED: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    logit += row * row_stride
    gradient += row * gradient_stride
    numbers += row
    # Loaded here and not where they are used: nothing is moved out of a loop that stores.
    highest, weight, by_sum = tl.load(numbers), tl.load(numbers + rows), tl.load(numbers + 2 * rows)
    inverse, weight_tau, tilt = 1.0, 0.0, 0.0
    if TEMPERED:
        inverse, weight_tau = tl.load(numbers + 3 * rows), tl.load(numbers + 4 * rows)
        tilt = tl.load(numbers + 5 * rows)
    ids += row * columns
    by += row * columns
    if MERGED:
        # The softmax part once (none where the logit is masked: it is in `by` then), and what all columns that name the
        # id have, added up in one order: each of these columns finds the same bits, whichever is stored last, without
        # atomics. At J = 101 that is some 13 000 comparisons a row, beside 150 000 exponentials.
        column_J = tl.arange(0, BLOCK_J)
        id_J = tl.load(ids + column_J, column_J < columns, other=0)
        z_J = _capped(tl.load(logit + id_J, column_J < columns, other=float("-inf")), softcap, CAPPED)
        entry_J = _softmax_part(z_J, highest, weight, by_sum, inverse, weight_tau, tilt, softcap, CAPPED, TEMPERED)
        for start in range(0, columns, BLOCK_I):
            column_I = start + tl.arange(0, BLOCK_I)
            id_I = tl.load(ids + column_I, column_I < columns, other=-1)
            by_I = tl.load(by + column_I, column_I < columns, other=0.0)
            entry_J += tl.sum(tl.where(id_J[:, None] == id_I[None, :], by_I[None, :], 0.0), axis=1)

    # A narrow gradient is written over logits: entries [iB, iB + B) of 2 bytes lie on logits [iB / 2, iB / 2 + B / 2)
    # of 4 bytes, all in blocks up to i. Warps of a program drift, hence the barrier: past it, all have read the blocks
    # up to i, and the logits at the ids, so that no store of block i comes before a load of what it lies on. A warp
    # that runs ahead loads from byte 4 (i + 1) B on; the stores up to block i end at byte 2 (i + 1) B.
    for start in range(0, vocabulary, BLOCK_V):
        v_V = start + tl.arange(0, BLOCK_V)
        z_V = _capped(tl.load(logit + v_V, v_V < vocabulary, other=float("-inf")), softcap, CAPPED)
        dz_V = _softmax_part(z_V, highest, weight, by_sum, inverse, weight_tau, tilt, softcap, CAPPED, TEMPERED)
        if not MERGED:
            dz_V += tl.load(by + v_V, v_V < vocabulary, other=0.0)
        tl.debug_barrier()
        tl.store(gradient + v_V, dz_V.to(gradient.dtype.element_ty), v_V < vocabulary)
    if MERGED:
        tl.debug_barrier()  # the ids' entries come last, rounded once: added to rounded ones they would lose q - t
        tl.store(gradient + id_J, entry_J.to(gradient.dtype.element_ty), column_J < columns)


@triton.jit
def _softmax_part(
    z, highest, weight, by_sum, inverse, weight_tau, tilt, softcap, CAPPED: tl.constexpr, TEMPERED: tl.constexpr
):
    """The gradient of capped logits z, but for the derivatives at the ids; 0 where z = -inf and by_sum = 0."""
    below = _below(z, highest)
    dz = weight * tl.exp(below) + by_sum
    if TEMPERED:
        dz += (weight_tau + tilt * below) * tl.exp(below * inverse)
    if CAPPED:
        dz *= tl.where(z == float("-inf"), 0.0, 1.0 - (z / softcap) * (z / softcap))
    return dz


@triton.jit
def _below(z, highest):
    """z - highest; finite where z = -inf, so that no product with a vanished exponential is NaN."""
    return tl.maximum(z - highest, -1e30, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _capped(z, softcap, CAPPED: tl.constexpr):
    """softcap tanh(z / softcap); what is masked stays masked.

    Not 1 - 2 / (exp(2x) + 1) near 0, where float32 would leave errors of 3e-6 in a logit; the polynomial is that of
    Cephes' tanhf. libdevice's tanh is not there in the interpreter.
    """
    if CAPPED:
        x = tl.where(z == float("-inf"), 0.0, z / softcap)
        square = x * x
        small = -5.70498872745e-3 * square + 2.06390887954e-2
        small = (small * square - 5.37397155531e-2) * square + 1.33314422036e-1
        small = (small * square - 3.33332819422e-1) * square * x + x
        power = tl.exp(-2.0 * tl.abs(x))
        large = (1.0 - power) / (1.0 + power)
        tanh = tl.where(tl.abs(x) < 0.625, small, tl.where(x < 0, -large, large))
        z = tl.where(z == float("-inf"), z, softcap * tanh)
    return z
