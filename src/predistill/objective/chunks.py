"""The fused loss over its chunks: logits, what is read of them, the loss, and the gradient in the logits' place.

N positions  C positions of a chunk  V vocabulary  D width  J columns: the target's ids, then the label
"""

from __future__ import annotations

import torch
from torch import Tensor

from predistill.objective.kernels.reading import Reads, Student
from predistill.objective.kernels.torch_rows import deviation
from predistill.objective.layer import Layer
from predistill.objective.term import Term

__all__ = ["sums_and_gradients"]


def sums_and_gradients(
    layer: Layer,
    hidden_ND: Tensor,
    label_N: Tensor,
    position_N: Tensor,
    term: Term | None,
    alpha: float,
    z_loss: float,
    chunk: int,
    wants: list[bool],
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """(sums, gradients) over the counted positions."""
    weight_VD, bias_V = layer.weight_VD, layer.bias_V
    rows = layer.vocabulary + layer.padding
    grad_ND = hidden_ND.new_zeros(hidden_ND.shape) if wants[0] else None
    grad_VD = weight_VD.new_zeros((rows, weight_VD.shape[1]), dtype=layer.dtype) if wants[1] else None
    grad_V = None if bias_V is None or not wants[2] else bias_V.new_zeros(rows)
    width_C = [0]
    if term is not None:
        # Positions that keep about as much share a chunk, so that a chunk is no wider than it must be.
        position_N = position_N[term.length_N[position_N].argsort(stable=True)]
        width_C = [] if not len(position_N) else term.length_N[_lasts(position_N, chunk)].tolist()
    buffer_CV = hidden_ND.new_empty((chunk, layer.vocabulary), dtype=layer.dtype)
    sums = hidden_ND.new_zeros(4, dtype=layer.dtype)
    for number, position_C in enumerate(position_N.split(chunk) if len(position_N) else ()):
        hidden_CD = hidden_ND.index_select(0, position_C).to(weight_VD.dtype)
        by_CV = logit_CV = layer.logits(hidden_CD, buffer_CV)
        blocks = [slice(0, len(position_C))]
        if term is not None and (term.targets.whole or not term.plain):
            blocks = layer.blocks(len(position_C), whole=term.targets.whole)
        dtype = weight_VD.dtype if len(blocks) == 1 else layer.dtype
        for block in blocks:
            part = None if term is None else term.at(position_C[block], width=width_C[number])
            label_C = label_N[position_C[block]]
            block_sums, by_CV = _block_(layer, logit_CV[block], label_C, part, alpha, z_loss, dtype, grad=any(wants))
            sums += block_sums
        if not any(wants):
            continue
        if len(blocks) > 1:
            by_CV = logit_CV.to(weight_VD.dtype)
        if grad_ND is not None:
            grad_ND.index_copy_(0, position_C, torch.mm(by_CV, weight_VD).to(grad_ND.dtype))
        if grad_VD is not None:
            layer.add_weight_gradient_(grad_VD[: layer.vocabulary], by_CV, hidden_CD)
        if grad_V is not None:
            grad_V[: layer.vocabulary].add_(by_CV.sum(dim=0, dtype=grad_V.dtype))
    if layer.logit_scale != 1:  # here once, and not on every logit's gradient, which may be narrow
        for grad in (grad_ND, grad_VD, grad_V):
            if grad is not None:
                grad.mul_(layer.logit_scale)
    return sums, (grad_ND, grad_VD, grad_V)


def _block_(
    layer: Layer,
    logit_CV: Tensor,
    label_C: Tensor,
    term: Term | None,
    alpha: float,
    z_loss: float,
    dtype: torch.dtype,
    *,
    grad: bool,
) -> tuple[Tensor, Tensor]:
    """(total, lm, kd, kl summed; where asked for, the gradient of total in the logits, made in their place)."""
    backend = layer.backend
    ids_CJ, reads = label_C[:, None], Reads()
    if term is not None:
        ids_CJ = term.ids_NJ
        reads = term.reads(lambda: deviation(logit_CV, layer.scratch, softcap=layer.softcap))
    reading = backend.read_(logit_CV, ids_CJ, reads, layer.scratch, softcap=layer.softcap)
    read = reading.student
    lm_C = read.lse_N - read.logit_NJ[:, -1]
    total_C, kd_C, kl_C = lm_C, None, None
    by = Student(torch.full_like(read.logit_NJ[:, -1:], -1.0), torch.ones_like(lm_C))  # of the LM loss
    if term is not None:
        target = term.target()
        alpha_C = alpha * term.distil_N.to(lm_C.dtype)
        if grad:
            kd_C, by = term.kd_and_slope(read, reads, target, alpha_C)
            by.logit_NJ[:, -1] -= 1 - alpha_C
            by = by._replace(lse_N=by.lse_N + (1 - alpha_C))
        else:
            kd_C = term.kd(term.student(read, reads), target)
        kl_C = term.kl(read, target, kd_C)
        total_C = (1 - alpha_C) * lm_C + alpha_C * kd_C
    if z_loss:
        total_C = total_C + z_loss * read.lse_N.square()
        by = by._replace(lse_N=by.lse_N + 2 * z_loss * read.lse_N)
    values = (lm_C.new_zeros(()) if value_C is None else value_C.sum() for value_C in (total_C, lm_C, kd_C, kl_C))
    sums = torch.stack(tuple(values))
    return sums, backend.write_gradient_(reading, by, dtype=dtype) if grad else logit_CV


def _lasts(position_N: Tensor, chunk: int) -> Tensor:
    """The last position of each chunk."""
    last_M = torch.arange(chunk - 1, len(position_N) + chunk - 1, chunk, device=position_N.device)
    return position_N[last_M.clamp(max=len(position_N) - 1)]
