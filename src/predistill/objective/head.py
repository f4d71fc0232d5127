"""The output layer and the objective in one: a chunk of logits at a time, three matrix products, whatever the loss.

The gradient is made in the forward pass, in the buffer that held the logits: [N, V] never exists beyond a chunk. All of
it is one operator, `predistill::linear_distill`, so that torch.compile sees one node where the chunks are.

N positions  C positions of a chunk  V vocabulary  D width  J columns: the target's ids, then the label
"""

# ruff: noqa: B008  (the choices are frozen)

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from predistill.errors import RecipeError
from predistill.objective.checks import IGNORED, check_labels, check_weight, checked_alpha
from predistill.objective.chunks import sums_and_gradients
from predistill.objective.layer import Layer
from predistill.objective.losses import KLD, Loss
from predistill.objective.positions import All, Positions
from predistill.objective.tail import Renormalise, Tail
from predistill.objective.targets import SparseTargets
from predistill.objective.temperature import Static, Temperature
from predistill.objective.term import Choices, LossParts, distillation_term

__all__ = ["linear_distill_loss"]


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
    vocab_size: int | None = None,
    backend: str | None = None,
) -> LossParts:
    """The pre-training distillation objective (arXiv 2410.16215) without the logits [N, V]: distill_loss of
    cap(logit_scale * (hidden W^T + bias)), cap(z) = softcap * tanh(z / softcap). Sums of nats over N positions.

    hidden_ND, weight_VD, bias_V: any float types. label_N int64, -100 = not counted. targets: N positions, None = LM
    loss. alpha: the share of the loss against the teacher, a number or a 0-d tensor in [0, 1]. row_len: positions of a
    row, for positions that rank within rows. z_loss * lse^2 is added at every counted position (arXiv 2204.02311).
    `total` has a gradient for hidden_ND, weight_VD and bias_V. It is made in the forward pass (not under no_grad), so
    that backward only multiplies by the upstream scalar, any number of times. Logits are float32 whatever the operands,
    and gradients are summed in float32. What hidden_ND holds where the label is -100 is never read. alpha = 0 is the LM
    loss to the bit. vocab_size: rows of the weight beyond it are padding, with logits of -inf. chunk_tokens = None
    chooses. backend: "torch", "triton" (None: triton where it runs, on CUDA). Raises RecipeError for parts that do not
    go together.
    """
    check_weight(weight_VD)
    if len(hidden_ND) != len(label_N):
        raise RecipeError(f"{len(hidden_ND)} hidden states for {len(label_N)} labels: give one for every position.")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise RecipeError(f"chunk_tokens is {chunk_tokens}: a chunk holds one position or more; None chooses.")
    if targets is not None and not isinstance(alpha, Tensor) and checked_alpha(alpha) == 0:
        targets = None
    grad = torch.is_grad_enabled()
    sums, counts, grad_ND, grad_VD, grad_V = torch.ops.predistill.linear_distill(
        hidden_ND.detach(),
        weight_VD.detach(),
        None if bias_V is None else bias_V.detach(),
        label_N,
        *_unpacked(targets),
        alpha if isinstance(alpha, Tensor) else torch.tensor(alpha, dtype=torch.float64),
        _registered(loss, temperature, tail, positions),
        row_len,
        chunk_tokens,
        logit_scale,
        softcap,
        z_loss,
        vocab_size,
        backend,
        [grad and operand is not None and operand.requires_grad for operand in (hidden_ND, weight_VD, bias_V)],
    )
    total, lm, kd, kl = sums.unbind()
    count, kd_count = counts.unbind()
    if grad:
        total = _WithGradient.apply(total, hidden_ND, weight_VD, bias_V, grad_ND, grad_VD, grad_V)  # type: ignore[no-untyped-call]
    if targets is None:
        return LossParts(total, lm, None, count, kd_count, None)
    known = not targets.sampled or targets.entropy_N is not None
    return LossParts(total, lm, kd, count, kd_count, kl if known else None)


class _WithGradient(torch.autograd.Function):
    """total, with gradients that are known already."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, *operands_and_gradients: Any) -> Tensor:
        operands, gradients = operands_and_gradients[:3], operands_and_gradients[3:]
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if operand is None else operand.dtype for operand in operands]
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        wanted = zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[1:4], strict=True)
        grads = ((grad * grad_total).to(dtype) if want else None for grad, dtype, want in wanted)
        return None, *grads, None, None, None


# The operator takes strings and tensors; choices are kept under the name that they give themselves.
_CHOICES: dict[str, Choices] = {}


def _registered(*choices: Any) -> str:
    # Ours are equal where their names are; of others nothing is known.
    ours = (type(choice).__module__.startswith("predistill.") for choice in choices)
    name = " ".join(
        repr(choice) if own else f"{choice!r} at {id(choice):x}" for choice, own in zip(choices, ours, strict=True)
    )
    _CHOICES[name] = Choices(*choices)
    return name


# What torch.compiler.assume_constant_result sets; calling it would load the compiler, a second, with every import.
_registered._dynamo_marked_constant = True  # type: ignore[attr-defined]


_TENSORS = ("ids_NK", "logprob_NK", "weight_NK", "log_rest_N", "entropy_N", "logit_std_N", "lse_tau_N")


def _unpacked(targets: SparseTargets | None) -> tuple[Any, ...]:
    if targets is None:
        return (*(None for _ in _TENSORS), None)
    return (*(getattr(targets, name) for name in _TENSORS), targets.tau)


_library = torch.library.Library("predistill", "DEF")
_library.define(
    "linear_distill(Tensor hidden_ND, Tensor weight_VD, Tensor? bias_V, Tensor label_N, Tensor? ids_NK, "
    "Tensor? logprob_NK, Tensor? weight_NK, Tensor? log_rest_N, Tensor? entropy_N, Tensor? logit_std_N, "
    "Tensor? lse_tau_N, float? tau, Tensor alpha, str choices, int? row_len, int? chunk_tokens, float logit_scale, "
    "float? softcap, float z_loss, int? vocab_size, str? backend, bool[] wants) "
    "-> (Tensor sums, Tensor counts, Tensor grad_ND, Tensor grad_VD, Tensor grad_V)"
)


def _linear_distill(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    label_N: Tensor,
    ids_NK: Tensor | None,
    logprob_NK: Tensor | None,
    weight_NK: Tensor | None,
    log_rest_N: Tensor | None,
    entropy_N: Tensor | None,
    logit_std_N: Tensor | None,
    lse_tau_N: Tensor | None,
    tau: float | None,
    alpha: Tensor,
    choices: str,
    row_len: int | None,
    chunk_tokens: int | None,
    logit_scale: float,
    softcap: float | None,
    z_loss: float,
    vocab_size: int | None,
    backend: str | None,
    wants: list[bool],
) -> tuple[Tensor, ...]:
    """The operator: (sums [4] of total, lm, kd, kl), (counts [2] of counted and distilled), and the gradients, empty
    where not wanted."""
    share = checked_alpha(alpha)
    targets = None
    if share and (ids_NK is not None or logprob_NK is not None):
        targets = SparseTargets(
            ids_NK, logprob_NK, weight_NK, log_rest_N, entropy_N, logit_std_N, lse_tau_N=lse_tau_N, tau=tau
        )
    layer = Layer.of(
        hidden_ND, weight_VD, bias_V, vocab_size=vocab_size, logit_scale=logit_scale, softcap=softcap, backend=backend
    )
    counted_N = label_N != IGNORED
    position_N = counted_N.nonzero()[:, 0]
    chunk = max(1, min(chunk_tokens or layer.chunk_tokens, len(position_N)))
    check_labels(label_N[position_N], layer.vocabulary)
    with (
        torch.no_grad(),
        torch.autocast(hidden_ND.device.type, enabled=False),  # it would narrow the logits' gradient
        # torch.compile runs operators below autograd; a loss may be differentiated by it all the same.
        torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False),
    ):
        term = None
        if targets is not None:
            parts = _CHOICES[choices]
            entropy = None
            if parts.positions.reads_student:
                entropy = layer.student_entropy(hidden_ND, position_N, chunk)
            term = distillation_term(
                targets,
                label_N,
                parts,
                vocabulary=layer.vocabulary,
                row_len=row_len,
                student_entropy_N=entropy,
            )
        sums, grads = sums_and_gradients(layer, hidden_ND, label_N, position_N, term, share, z_loss, chunk, wants)
        distilled = counted_N.new_zeros((), dtype=torch.int64) if term is None else term.distil_N.sum()
        narrow = (
            hidden_ND.new_empty(0) if grad is None or operand is None else grad.to(_gradient_dtype(operand))
            for grad, operand in zip(grads, (hidden_ND, weight_VD, bias_V), strict=True)
        )
        return sums, torch.stack((counted_N.sum(), distilled)), *narrow


@torch.library.register_fake("predistill::linear_distill", lib=_library)  # type: ignore[untyped-decorator]
def _fake(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, label_N: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    wants = rest[-1]
    dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
    grads = [
        operand.new_empty(operand.shape, dtype=_gradient_dtype(operand))
        if want and operand is not None
        else hidden_ND.new_empty(0)
        for operand, want in zip((hidden_ND, weight_VD, bias_V), wants, strict=True)
    ]
    return hidden_ND.new_empty(4, dtype=dtype), label_N.new_empty(2, dtype=torch.int64), *grads


def _gradient_dtype(operand: Tensor) -> torch.dtype:
    """A sum over many positions may be beyond float16 until the upstream scalar has divided it."""
    return torch.float32 if operand.dtype == torch.float16 else operand.dtype


_library.impl("linear_distill", _linear_distill, "CompositeExplicitAutograd")
