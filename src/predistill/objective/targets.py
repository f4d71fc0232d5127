"""What a student is given of its teacher: at each position a few token ids, their log-probabilities, and the rest.

N positions  V vocabulary  K most entries kept at one position
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

__all__ = ["SparseTargets"]


@dataclass(frozen=True)
class SparseTargets:
    """The kept part of a teacher's next-token distributions. A position whose ids are all -1 has no target.

    ids_NK      int64, an id at most once in a position, then -1 as padding; descending probability, ties by ascending
                id (sampled: ascending id)
    logprob_NK  float32, natural log of the teacher's full softmax at temperature 1; padding is not read.
                None for sampled targets whose proposal is the teacher itself
    weight_NK   float32, sampled targets only: mean importance weight of the draws of that id (count / draws when the
                proposal is the teacher itself); padding is not read
    log_rest_N  float32, log of the mass that is not kept, -inf for nothing; None for sampled targets
    entropy_N, logit_std_N, label_logprob_N
                float32 or None, nats (a population standard deviation), over the full vocabulary at temperature 1
    lse_tau_N   float32 or None, log sum_v p_v^(1/tau): of a sampled target's proposal
    draws       how many draws the weights come from; None for truncated targets
    """

    ids_NK: Tensor
    logprob_NK: Tensor | None = None
    weight_NK: Tensor | None = None
    log_rest_N: Tensor | None = None
    entropy_N: Tensor | None = None
    logit_std_N: Tensor | None = None
    label_logprob_N: Tensor | None = None
    lse_tau_N: Tensor | None = None
    draws: int | None = None

    @property
    def present_N(self) -> Tensor:
        """Which positions have a target, bool."""
        if self.ids_NK.shape[1] == 0:
            return torch.zeros(len(self.ids_NK), dtype=torch.bool, device=self.ids_NK.device)
        return self.ids_NK.amax(dim=1) >= 0

    @property
    def length_N(self) -> Tensor:
        """How many entries each position keeps, int64."""
        return (self.ids_NK >= 0).sum(dim=1)

    @property
    def sampled(self) -> bool:
        """Whether the entries are random draws with weights, not the head of the distribution."""
        return self.weight_NK is not None

    def select(self, positions: Tensor | slice, *, width: int | None = None) -> SparseTargets:
        """The targets at `positions` (an index, a boolean tensor or a slice over N), cut to `width` entries."""
        if isinstance(positions, slice):
            positions = torch.arange(len(self.ids_NK), device=self.ids_NK.device)[positions]
        elif positions.dtype == torch.bool:
            positions = positions.nonzero()[:, 0]
        cut = {name: tensor[:, :width] if tensor.dim() == 2 else tensor for name, tensor in self._tensors().items()}
        # index_select: plain indexing takes ten times as long here
        return replace(self, **{name: tensor.index_select(0, positions) for name, tensor in cut.items()})  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> SparseTargets:
        """The targets on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self._tensors().items()})  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}
