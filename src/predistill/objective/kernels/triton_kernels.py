"""The two kernels, a program a row: one pass that reads all that is asked for, one that writes the gradient.

V vocabulary, here a block of it  J I columns: the target's ids, then the label
"""
# Triton has no types, and need not be installed where types are checked.
# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["read_rows", "write_rows"]


@triton.jit
def read_rows(
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
def write_rows(
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
