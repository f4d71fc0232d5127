"""The output layer as the fused loss uses it: logits of a chunk into one buffer, gradients summed in float32.

C positions of a chunk  V vocabulary  D width
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from predistill.objective.checks import checked_vocabulary
from predistill.objective.kernels.backends import rows_backend
from predistill.objective.kernels.reading import Reads, Scratch

__all__ = ["Layer"]

CHUNK_TOKENS = 1024  # more gains nothing on a CPU; 256 saves memory and costs 5 % (benchmarks/results/loss.json)
CHUNK_BYTES = 1 << 30  # of float32 logits on an accelerator, where the weight's gradient must not be read too often
WHOLE_BYTES = 64 << 20  # of logits, with dense targets: a dozen numbers of that size are at hand at once


class Layer(NamedTuple):
    """The output layer, its operands in the type that they are multiplied in."""

    weight_VD: Tensor
    bias_V: Tensor | None
    padding: int
    logit_scale: float
    softcap: float | None
    dtype: torch.dtype  # of the logits
    backend: ModuleType
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
    ) -> Layer:
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
