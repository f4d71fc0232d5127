"""A store's integers to padded targets on an accelerator: only the compact integers are copied to it.

The arithmetic is that of `store/decode.py`; ids and lengths are equal to the bit, log-probabilities to the rounding of
the sum over a position, which is in float64 here.
"""

# N positions  K most entries kept at one position  E all kept entries  V vocabulary
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from predistill.objective import SparseTargets
from predistill.store import Grid, RawRows
from predistill.store.decode import log_rests, values
from predistill.store.streams import PER_POSITION

__all__ = ["Finisher"]

SIGNED = {1: np.uint8, 2: np.int16, 4: np.int32}  # torch knows few unsigned integers: the same bits, by their bytes


class Finisher:
    """Makes targets on `device` of the raw rows of one store; its tables lie there."""

    def __init__(
        self,
        *,
        id_of_rank_V: npt.NDArray[np.int32],
        grids: Mapping[str, Grid],
        draws: int | None,
        tau: float | None,
        device: torch.device,
    ) -> None:
        self._draws, self._tau, self._device = draws, tau, device
        self._id_of_rank_V = torch.from_numpy(id_of_rank_V.astype(np.int64)).to(device)
        self._values = {name: torch.from_numpy(values(grid)).to(device) for name, grid in grids.items()}
        self._log_rest, self._log_kept = (torch.from_numpy(t).to(device) for t in log_rests(grids["rest_logit"]))

    def __call__(self, raw: RawRows) -> SparseTargets:
        """As `padded_arrays` of the finished rows."""
        length_N = self._integers(raw.length_N)
        width = max(int(raw.length_N.max(initial=0)), 1)
        kept_NK = torch.arange(width, device=self._device) < length_N[:, None]
        place_NK = (length_N.cumsum(0) - length_N)[:, None] + torch.arange(width, device=self._device)
        place_NK.clamp_(max=len(raw.rank_E))  # one more is there

        def padded(values_E: npt.NDArray[Any]) -> Tensor:
            values = self._integers(np.append(values_E, values_E.dtype.type(0)))
            return values[place_NK].masked_fill_(~kept_NK, 0)

        rank_NK = padded(raw.rank_E)
        logprob_NK = weight_NK = None
        if raw.q_E is not None:
            q_NK = padded(raw.q_E) if raw.sampled else padded(raw.q_E).cumsum(1).clamp_(max=(1 << 16) - 1)
            logprob_NK = self._values["logprob"][q_NK]
            if not raw.sampled:
                assert raw.rest_N is not None
                log_kept_N = self._log_kept[self._integers(raw.rest_N)]
                logprob_NK = _scaled(logprob_NK, log_kept_N, kept_NK)
        columns = {field: self._column(raw, field) for field in PER_POSITION}
        if raw.count_E is not None:
            assert self._draws is not None
            weight_NK = padded(raw.count_E).float() / self._draws
            if self._tau is not None:
                assert logprob_NK is not None
                normaliser_N = columns["normaliser_N"]
                assert normaliser_N is not None
                weight_NK *= (logprob_NK * (1 - 1 / self._tau) + normaliser_N[:, None]).exp()
        return SparseTargets(
            ids_NK=self._id_of_rank_V[rank_NK].masked_fill_(~kept_NK, -1),
            logprob_NK=None if logprob_NK is None else logprob_NK.masked_fill(~kept_NK, -torch.inf),
            weight_NK=weight_NK,
            log_rest_N=None if raw.rest_N is None else self._log_rest[self._integers(raw.rest_N)],
            entropy_N=columns["entropy_N"],
            logit_std_N=columns["logit_std_N"],
            label_logprob_N=columns["label_logprob_N"],
            lse_tau_N=columns["normaliser_N"],
            draws=self._draws,
            tau=self._tau,
        )

    def _column(self, raw: RawRows, field: str) -> Tensor | None:
        stored_N = getattr(raw, field)
        return None if stored_N is None else self._values[PER_POSITION[field][1]][self._integers(stored_N)]

    def _integers(self, array: npt.NDArray[Any]) -> Tensor:
        """Unsigned integers below 2^31 on the device, int64; they travel as narrow as they are."""
        signed = torch.from_numpy(array.view(SIGNED[array.itemsize])).to(self._device)
        return signed.long() & 0xFFFF if array.itemsize == 2 else signed.long()


def _scaled(logprob_NK: Tensor, log_kept_N: Tensor, kept_NK: Tensor) -> Tensor:
    """Each position shifted by a constant so that its kept mass is 1 - rest, and at most 0."""
    # float32 probabilities, as numpy's path: entries all beyond e^-87 sum to 0, and there is nothing to scale by
    mass_N = logprob_NK.exp().masked_fill_(~kept_NK, 0.0).sum(dim=1, dtype=torch.float64)
    shift_N = torch.where(mass_N > 0, log_kept_N - mass_N.clamp(min=1e-38).log(), 0.0).float()
    return (logprob_NK + shift_N[:, None]).clamp_(max=0.0)
