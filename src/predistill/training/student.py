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
    """A causal model, trained; `end_id` is given when attention stays within documents, `autocast` is the compute
    precision."""

    def __init__(self, model: PreTrainedModel, *, end_id: int | None, autocast: torch.autocast) -> None:
        super().__init__()
        self.model, self.end_id, self.autocast = model, end_id, autocast

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    def forward(self, input_BT: Tensor, use: Use) -> tuple[Any, ...]:
        """`use(head, last hidden states [B, T, D], router loss or None)`: a tuple, in which sharding finds the tensors
        with a gradient."""
        with self.autocast:
            hidden = run(self.model, input_BT, end_id=self.end_id)
        return use(head_of(self.model), hidden.hidden_BTD, hidden.router)
