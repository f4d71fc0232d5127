"""The student as it is trained: one root module, whose forward ends in what is done with its head.

Sharded weights are whole only inside the forward of the module that owns them. The head and the embedding belong to the
root (they may be one tensor), so the fused loss, the held-out measure and the log of targets run inside the root's
forward, whatever is sharded: `Student.forward` hands them the head and the last hidden states.
"""

# B rows  T position  D width
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from predistill.students.forward import Head, head_of, run

__all__ = ["Student", "Use"]

Use = Callable[[Head, Tensor, Tensor | None], tuple[Any, ...]]


class Student(nn.Module):
    """A causal model, trained; `end_id` is given when attention stays within documents, `bf16` says that products are
    computed in bfloat16."""

    def __init__(self, model: PreTrainedModel, *, end_id: int | None = None, bf16: bool = False) -> None:
        super().__init__()
        self.model, self.end_id, self.bf16 = model, end_id, bf16

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    def forward(self, input_BT: Tensor, use: Use) -> tuple[Any, ...]:
        """`use(head, last hidden states [B, T, D], router loss or None)`: a tuple, in which sharding finds the tensors
        with a gradient."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            hidden = run(self.model, input_BT, end_id=self.end_id)
        hidden_BTD = hidden.hidden_BTD
        if self.bf16:  # the last norm may have widened them, and the output layer's products with them
            hidden_BTD = hidden_BTD.bfloat16()
        return use(head_of(self.model), hidden_BTD, hidden.router)
