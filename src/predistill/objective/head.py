"""The output layer and the objective in one: a chunk of logits at a time, three matrix products, whatever the loss.

The gradient is made in the forward pass, in the buffer that held the logits: [N, V] never exists beyond a chunk.

N positions  C positions of a chunk  V vocabulary  D width  J columns: the target's ids, then the label
"""

# ruff: noqa: B008  (the choices are frozen)

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from predistill.objective.losses import KLD, Loss, Student
from predistill.objective.positions import All, Positions
from predistill.objective.primitive import read_, write_gradient_
from predistill.objective.tail import Renormalise, Tail
from predistill.objective.targets import SparseTargets
from predistill.objective.temperature import Static, Temperature
from predistill.objective.term import IGNORED, LossParts, Term, distillation_term

__all__ = ["linear_distill_loss"]

CHUNK_TOKENS = 1024  # more gains nothing on a CPU; 256 saves memory and costs 1 to 10 % (LOSS.md section 5)


def linear_distill_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    label_N: Tensor,
    targets: SparseTargets | None = None,
    *,
    alpha: float | Tensor = 1.0,
    loss: Loss = KLD(),
    temperature: Temperature = Static(),
    tail: Tail = Renormalise(),
    positions: Positions = All(),
    row_len: int | None = None,
    chunk_tokens: int | None = None,
    bias_V: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> LossParts:
    """distill_loss of the logits cap(logit_scale * (hidden W^T + bias)), cap(z) = softcap * tanh(z / softcap), without
    the logits.

    `total` has a gradient for hidden_ND, weight_VD and bias_V. It is made in the forward pass (not under no_grad), so
    that backward only multiplies by the upstream scalar, any number of times. Operands narrower than float32 are
    widened, and gradients summed in float32. What hidden_ND holds where the label is -100 is never read. alpha = 0 is
    the LM loss to the bit. chunk_tokens = None chooses. Raises RecipeError for parts that do not go together.
    """
    term = distillation_term(
        targets,
        label_N,
        vocabulary=len(weight_VD),
        alpha=alpha,
        loss=loss,
        temperature=temperature,
        tail=tail,
        positions=positions,
        row_len=row_len,
    )
    counted_N = label_N != IGNORED
    count = counted_N.sum()
    position_N = counted_N.nonzero()[:, 0]
    if term is not None:
        # Positions that keep about as much share a chunk, so that a chunk is no wider than it must be.
        position_N = position_N[term.length_N[position_N].argsort(stable=True)]
    head = _Head(chunk_tokens or CHUNK_TOKENS, logit_scale, softcap, z_loss, grad=torch.is_grad_enabled())
    with torch.autocast(hidden_ND.device.type, enabled=False):  # it would narrow the logits' gradient
        total, lm, kd, kl = _LinearDistill.apply(  # type: ignore[no-untyped-call]
            hidden_ND, weight_VD, bias_V, label_N, position_N, term, head
        )
    if term is None:
        return LossParts(total, lm, None, count, torch.zeros_like(count), None)
    known = not term.targets.sampled or term.targets.entropy_N is not None
    return LossParts(total, lm, kd, count, term.distil_N.sum(), kl if known else None)


class _Head(NamedTuple):
    chunk_tokens: int
    logit_scale: float
    softcap: float | None
    z_loss: float
    grad: bool


class _LinearDistill(torch.autograd.Function):
    """(total, lm, kd, kl), with a gradient for total."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        label_N: Tensor,
        position_N: Tensor,
        term: Term | None,
        head: _Head,
    ) -> tuple[Tensor, ...]:
        dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        wide_VD = weight_VD.to(dtype)
        wide_V = None if bias_V is None else bias_V.to(dtype)
        wants = [head.grad and needed for needed in ctx.needs_input_grad[:3]]
        grad_ND = torch.zeros_like(hidden_ND) if wants[0] else None
        grad_VD = torch.zeros_like(wide_VD) if wants[1] else None
        grad_V = torch.zeros_like(wide_V) if wants[2] and wide_V is not None else None

        chunk = max(1, min(head.chunk_tokens, len(position_N)))
        buffer_CV = hidden_ND.new_empty((chunk, len(wide_VD)), dtype=dtype)
        tempered_CV = None if term is None or term.tau is None else torch.empty_like(buffer_CV)
        sums = hidden_ND.new_zeros(4, dtype=dtype)
        for position_C in position_N.split(chunk):
            hidden_CD = hidden_ND.index_select(0, position_C).to(dtype) * head.logit_scale
            logit_CV = torch.mm(hidden_CD, wide_VD.t(), out=buffer_CV[: len(hidden_CD)])
            if wide_V is not None:
                logit_CV.add_(wide_V, alpha=head.logit_scale)
            slope_CV = None if head.softcap is None else _cap_(logit_CV, head.softcap)
            part = None if term is None else term.at(position_C)
            label_C = label_N[position_C]
            sums += _chunk_(logit_CV, tempered_CV, label_C, part, z_loss=head.z_loss, grad=any(wants))
            if slope_CV is not None:
                logit_CV.mul_(slope_CV)
            if grad_ND is not None:
                grad_CD = torch.mm(logit_CV, wide_VD).mul_(head.logit_scale)
                grad_ND.index_copy_(0, position_C, grad_CD.to(grad_ND.dtype))
            if grad_VD is not None:
                grad_VD.addmm_(logit_CV.t(), hidden_CD)
            if grad_V is not None:
                grad_V.add_(logit_CV.sum(dim=0), alpha=head.logit_scale)

        narrow_VD = None if grad_VD is None else grad_VD.to(weight_VD.dtype)
        narrow_V = None if grad_V is None or bias_V is None else grad_V.to(bias_V.dtype)
        ctx.save_for_backward(grad_ND, narrow_VD, narrow_V)
        total, *others = (value.clone() for value in sums)
        ctx.mark_non_differentiable(*others)
        return total, *others

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if grad is None else grad * grad_total for grad in ctx.saved_tensors), None, None, None, None


def _chunk_(
    logit_CV: Tensor, tempered_CV: Tensor | None, label_C: Tensor, term: Term | None, *, z_loss: float, grad: bool
) -> Tensor:
    """(total, lm, kd, kl) summed over a chunk; where asked for, the gradient of total takes the place of the logits."""
    ids_CJ = label_C[:, None] if term is None else term.ids_NJ
    target = None if term is None else term.target()
    reading = read_(
        logit_CV,
        ids_CJ,
        tau=None if term is None else term.tau,
        tempered_CV=None if tempered_CV is None else tempered_CV[: len(logit_CV)],
        kept_CJ=None if term is None else term.kept_NJ,
    )
    student = reading.student
    leaves = [number.requires_grad_(grad) for number in student if number is not None]
    with torch.set_grad_enabled(grad):
        lm_C = student.lse_N - student.logit_NJ[:, -1]
        total_C, kd_C, kl_C = lm_C, None, None
        if term is not None and target is not None:
            kd_C = term.kd(student, target)
            total_C = term.mix(lm_C, kd_C)
            with torch.no_grad():
                kl_C = term.kl(student, target, kd_C)
        if z_loss:
            total_C = total_C + z_loss * student.lse_N.square()
        total = total_C.sum()
    if grad:
        derivatives = iter(torch.autograd.grad(total, leaves, materialize_grads=True))
        by = Student(*(None if number is None else next(derivatives) for number in student))  # type: ignore[arg-type]
        write_gradient_(reading, by)
    sums = (lm_C.new_zeros(()) if value_C is None else value_C.detach().sum() for value_C in (lm_C, kd_C, kl_C))
    return torch.stack((total.detach(), *sums))


def _cap_(logit_CV: Tensor, softcap: float) -> Tensor:
    """Soft cap in place; returns its slope, 1 - (capped / softcap)^2."""
    logit_CV.div_(softcap).tanh_()
    slope_CV = 1 - logit_CV.square()
    logit_CV.mul_(softcap)
    return slope_CV
