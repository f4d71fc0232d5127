"""What a student is given of its teacher: at each position a few token ids, their log-probabilities, and the rest.

N positions  V vocabulary  K most entries kept at one position
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["SparseTargets", "concatenate"]


@dataclass(frozen=True)
class SparseTargets:
    """The kept part of a teacher's next-token distributions. A position whose ids are all -1 has no target.

    ids_NK      int64 or, from a store, int32; an id at most once in a position (`unique` makes it so), then -1 as
                padding; descending probability, ties by ascending id (sampled: ascending id). None: dense, all V ids
                in order
    logprob_NK  float32, natural log of the teacher's full softmax at temperature 1; padding is not read.
                None for sampled targets whose proposal is the teacher itself
    weight_NK   float32, sampled targets only: mean importance weight of the draws of that id (count / draws when the
                proposal is the teacher itself); padding is not read
    log_rest_N  float32, log of the mass that is not kept, -inf for nothing; None for sampled targets
    entropy_N, logit_std_N, label_logprob_N
                float32 or None, nats (a population standard deviation), over the full vocabulary at temperature 1
    lse_tau_N   float32 or None, log sum_v p_v^(1/tau) over the full vocabulary: what tempering a truncated teacher
                needs; of a sampled target, at its proposal's temperature
    draws       how many draws the weights come from; None for truncated targets
    tau         the temperature of lse_tau_N
    """

    ids_NK: Tensor | None
    logprob_NK: Tensor | None = None
    weight_NK: Tensor | None = None
    log_rest_N: Tensor | None = None
    entropy_N: Tensor | None = None
    logit_std_N: Tensor | None = None
    label_logprob_N: Tensor | None = None
    lse_tau_N: Tensor | None = None
    draws: int | None = None
    tau: float | None = None

    def __len__(self) -> int:
        """N."""
        return len(self._entries)

    @property
    def present_N(self) -> Tensor:
        """Which positions have a target, bool."""
        return self.length_N > 0

    @property
    def length_N(self) -> Tensor:
        """How many columns reach to the last kept entry of each position, int64; 0: no target."""
        if self.ids_NK is None or not self.ids_NK.shape[1]:
            return torch.full((len(self),), self._entries.shape[1], device=self._entries.device)
        place_K = torch.arange(1, self.ids_NK.shape[1] + 1, device=self.ids_NK.device, dtype=torch.int32)
        return ((self.ids_NK >= 0) * place_K).amax(dim=1).long()

    @property
    def whole(self) -> bool:
        """Whether all of the distribution is here: dense targets."""
        return self.ids_NK is None

    @property
    def sampled(self) -> bool:
        """Whether the entries are random draws with weights, not the head of the distribution."""
        return self.weight_NK is not None

    @property
    def columns_NK(self) -> Tensor:
        """ids_NK, also of dense targets."""
        if self.ids_NK is not None:
            return self.ids_NK
        entries_NK = self._entries
        return torch.arange(entries_NK.shape[1], device=entries_NK.device).expand(len(entries_NK), -1)

    def select(self, positions: Tensor | slice, *, width: int | None = None) -> SparseTargets:
        """The targets at `positions` (an index, a boolean tensor or a slice over N), cut to `width` entries."""
        if isinstance(positions, slice):
            positions = torch.arange(len(self), device=self._entries.device)[positions]
        elif positions.dtype == torch.bool:
            positions = positions.nonzero()[:, 0]
        cut = {name: tensor[:, :width] if tensor.dim() == 2 else tensor for name, tensor in self._tensors().items()}
        # index_select: plain indexing takes ten times as long here
        return replace(self, **{name: tensor.index_select(0, positions) for name, tensor in cut.items()})  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> SparseTargets:
        """The targets on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self._tensors().items()})  # type: ignore[arg-type]

    def absent(self, positions: int) -> SparseTargets:
        """`positions` that have no target, to stand beside these (which are not dense)."""
        assert self.ids_NK is not None
        empty = {
            name: tensor.new_full((positions, *tensor.shape[1:]), -1 if name == "ids_NK" else 0)
            for name, tensor in self._tensors().items()
        }
        return replace(self, **empty)  # type: ignore[arg-type]

    def unique(self) -> SparseTargets:
        """Each id once in a position: of log-probabilities the highest is kept, weights of draws are added.

        For targets from elsewhere: an engine may list the label twice, among the most probable and by itself.
        """
        if self.ids_NK is None:
            return self
        padding_NK = self.ids_NK < 0
        key_NK = self.ids_NK.long().masked_fill(padding_NK, torch.iinfo(torch.int64).max)
        key_NK, order_NK = key_NK.sort(dim=1, stable=True)
        place_NK = torch.zeros_like(key_NK)
        place_NK[:, 1:] = (key_NK[:, 1:] != key_NK[:, :-1]).cumsum(dim=1)
        ids_NK = torch.full_like(self.ids_NK, -1).scatter_(1, place_NK, self.ids_NK.gather(1, order_NK))

        def together(value_NK: Tensor | None, how: str) -> Tensor | None:
            if value_NK is None:
                return None
            value_NK = value_NK.masked_fill(padding_NK, 0.0).gather(1, order_NK)
            return torch.zeros_like(value_NK).scatter_reduce(1, place_NK, value_NK, how, include_self=False)

        logprob_NK, weight_NK = together(self.logprob_NK, "amax"), together(self.weight_NK, "sum")
        rank_NK = torch.arange(ids_NK.shape[1], device=ids_NK.device).expand_as(ids_NK)
        if logprob_NK is not None and not self.sampled:
            rank_NK = logprob_NK.masked_fill(ids_NK < 0, -torch.inf).argsort(dim=1, descending=True, stable=True)
            rank_NK = rank_NK.gather(1, (ids_NK.gather(1, rank_NK) < 0).int().argsort(dim=1, stable=True))
        return replace(
            self,
            ids_NK=ids_NK.gather(1, rank_NK),
            logprob_NK=None if logprob_NK is None else logprob_NK.gather(1, rank_NK),
            weight_NK=None if weight_NK is None else weight_NK.gather(1, rank_NK),
        )

    @property
    def _entries(self) -> Tensor:
        entries = self.logprob_NK if self.ids_NK is None else self.ids_NK
        assert entries is not None, "dense targets are log-probabilities"
        return entries

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def concatenate(parts: Sequence[SparseTargets]) -> SparseTargets:
    """The parts one after the other, padded to the longest position."""
    width = max(part.columns_NK.shape[1] for part in parts)

    def joined(name: str) -> Tensor | int | None:
        values = [getattr(part, name) for part in parts]
        if not isinstance(values[0], Tensor):
            return values[0]  # type: ignore[no-any-return]
        if values[0].dim() == 2:
            values = [pad(value, (0, width - value.shape[1]), value=-1 if name == "ids_NK" else 0) for value in values]
        return torch.cat(values)

    return SparseTargets(**{field.name: joined(field.name) for field in fields(SparseTargets)})  # type: ignore[arg-type]
