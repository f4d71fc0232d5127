"""The output layer and the objective in one: a chunk of logits at a time, three matrix products, whatever the loss.

The gradient is made in the forward pass, in the buffer that held the logits: [N, V] never exists beyond a chunk. All of
it is one operator, `predistill::linear_distill`, so that torch.compile sees one node where the chunks are.

N positions  C positions of a chunk  V vocabulary  D width  J columns: the target's ids, then the label
"""

# ruff: noqa: B008  (the choices are frozen)

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from predistill.errors import RecipeError
from predistill.objective.kernels.backends import rows_backend
from predistill.objective.kernels.reading import Reads, Scratch, Student
from predistill.objective.kernels.torch_rows import deviation
from predistill.objective.losses import KLD, Loss
from predistill.objective.positions import All, Positions
from predistill.objective.tail import Renormalise, Tail
from predistill.objective.targets import SparseTargets
from predistill.objective.temperature import Static, Temperature
from predistill.objective.term import (
    IGNORED,
    Choices,
    LossParts,
    Term,
    check_labels,
    checked_alpha,
    checked_vocabulary,
    distillation_term,
)

__all__ = ["linear_distill_loss"]

CHUNK_TOKENS = 1024  # more gains nothing on a CPU; 256 saves memory and costs 1 to 10 % (LOSS.md section 5)
WHOLE_BYTES = 64 << 20  # of logits, with dense targets: a dozen numbers of that size are at hand at once
CHUNK_BYTES = 1 << 30  # of float32 logits on an accelerator, where the weight's gradient must not be read too often


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
    """distill_loss of the logits cap(logit_scale * (hidden W^T + bias)), cap(z) = softcap * tanh(z / softcap), without
    the logits.

    `total` has a gradient for hidden_ND, weight_VD and bias_V. It is made in the forward pass (not under no_grad), so
    that backward only multiplies by the upstream scalar, any number of times. Logits are float32 whatever the operands,
    and gradients are summed in float32. What hidden_ND holds where the label is -100 is never read. alpha = 0 is the LM
    loss to the bit. vocab_size: rows of the weight beyond it are padding, with logits of -inf. chunk_tokens = None
    chooses. backend: "torch", "triton" (None: triton where it runs, on CUDA). Raises RecipeError for parts that do not
    go together.
    """
    _check_whole(weight_VD)
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
    layer = _Layer.of(
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
        sums, grads = _chunks(layer, hidden_ND, label_N, position_N, term, share, z_loss, chunk, wants)
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


class _Layer(NamedTuple):
    """The output layer, its operands in the type that they are multiplied in."""

    weight_VD: Tensor
    bias_V: Tensor | None
    padding: int
    logit_scale: float
    softcap: float | None
    dtype: torch.dtype  # of the logits
    backend: Any
    scratch: Scratch

    @classmethod
    def of(
        cls,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        *,
        vocab_size: int | None,
        logit_scale: float,
        softcap: float | None,
        backend: str | None,
    ) -> _Layer:
        vocabulary = checked_vocabulary(vocab_size, len(weight_VD))
        dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        # A CPU multiplies narrow types slowly or not at all; an accelerator multiplies them into float32.
        operand = dtype if hidden_ND.device.type == "cpu" else hidden_ND.dtype
        return cls(
            weight_VD[:vocabulary].to(operand),
            None if bias_V is None else bias_V[:vocabulary].to(dtype),
            len(weight_VD) - vocabulary,
            logit_scale,
            softcap,
            dtype,
            rows_backend(backend, hidden_ND.device, dtype),
            Scratch(),
        )

    @property
    def vocabulary(self) -> int:
        return len(self.weight_VD)

    @property
    def chunk_tokens(self) -> int:
        if self.weight_VD.device.type == "cpu":
            return CHUNK_TOKENS
        fitting = CHUNK_BYTES // (4 * self.vocabulary)
        return max(CHUNK_TOKENS, 1 << fitting.bit_length() - 1 if fitting else 0)

    def logits(self, hidden_CD: Tensor, out_CV: Tensor) -> Tensor:
        """Logits before the soft cap, in the first rows of out_CV."""
        out_CV = out_CV[: len(hidden_CD)]
        if hidden_CD.dtype == out_CV.dtype:
            torch.mm(hidden_CD, self.weight_VD.t(), out=out_CV)
        else:
            torch.mm(hidden_CD, self.weight_VD.t(), out_dtype=out_CV.dtype, out=out_CV)
        if self.bias_V is not None:
            out_CV.add_(self.bias_V)
        return out_CV if self.logit_scale == 1 else out_CV.mul_(self.logit_scale)

    def add_weight_gradient_(self, grad_VD: Tensor, by_CV: Tensor, hidden_CD: Tensor) -> None:
        """grad_VD += by^T hidden, summed in grad_VD's type."""
        if by_CV.dtype == grad_VD.dtype:
            grad_VD.addmm_(by_CV.t(), hidden_CD)
        else:
            torch.addmm(grad_VD, by_CV.t(), hidden_CD, out_dtype=grad_VD.dtype, out=grad_VD)

    def blocks(self, count: int, *, whole: bool = False) -> list[slice]:
        """Rows of a chunk that the backend wants to see at once where it passes over them several times; of `whole`
        targets, whose every number is as wide as the vocabulary, never more than a few."""
        rows = self.backend.block_rows(self.vocabulary, self.weight_VD.device) or max(1, count)
        if whole:
            rows = min(rows, max(1, WHOLE_BYTES // (4 * self.vocabulary)))
        return [slice(start, start + rows) for start in range(0, count, rows)]

    def student_entropy(self, hidden_ND: Tensor, position_N: Tensor, chunk: int) -> Tensor:
        """The entropy [N] of the student's distribution at these positions, nats: one product, no gradient."""
        entropy_N = hidden_ND.new_zeros(len(hidden_ND), dtype=self.dtype)
        buffer_CV = hidden_ND.new_empty((chunk, self.vocabulary), dtype=self.dtype)
        for position_C in position_N.split(chunk):
            logit_CV = self.logits(hidden_ND[position_C].to(self.weight_VD.dtype), buffer_CV)
            for rows in self.blocks(len(position_C)):
                none_CJ = position_C.new_zeros((len(position_C[rows]), 1))
                reads = Reads(entropy=True)
                reading = self.backend.read_(logit_CV[rows], none_CJ, reads, self.scratch, softcap=self.softcap)
                entropy_N[position_C[rows]] = reading.student.entropy_N
        return entropy_N


def _chunks(
    layer: _Layer,
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
    layer: _Layer,
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


def _check_whole(weight_VD: Tensor) -> None:
    if hasattr(weight_VD, "full_tensor"):
        raise RecipeError(
            "The head's weight is sharded (a DTensor). Call the loss inside the wrapped module's forward, where FSDP "
            "has gathered it, or pass weight.full_tensor()."
        )
    if not weight_VD.numel():
        raise RecipeError(
            "The head's weight is empty here: ZeRO-3 keeps it elsewhere. Gather it around the loss "
            "(deepspeed.zero.GatheredParameters)."
        )
