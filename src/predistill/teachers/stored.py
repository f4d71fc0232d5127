"""Targets out of a store: for exactly the asked rows, checked against the very tokens that the student sees."""

# n rows  T position  N = n*T  K kept entries  E all kept entries
from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from predistill.fingerprint import row_hash
from predistill.objective import SparseTargets, Truncation
from predistill.store import RowTargets, Store

__all__ = ["StoredTeacher", "padded_targets"]


class StoredTeacher:
    """A store read through the recipe's (narrower or equal) truncation."""

    def __init__(self, store: Store, *, truncation: Truncation, device: torch.device) -> None:
        self._store, self._truncation, self._device = store, truncation, device
        sampling = store.manifest.get("sampling")
        self._draws = None if sampling is None else int(sampling["draws"])

    def targets(self, rows: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]) -> SparseTargets:
        """Targets [n*T, K] of corpus rows `rows`, whose token ids are `ids` [n, T + 1].

        Raises StoreError when a record is damaged or was made from other tokens.
        """
        hashes = np.array([row_hash(row) for row in ids], dtype=np.uint64)
        stored = self._store.rows(rows, token_hashes=hashes)
        return self._truncation.narrow(padded_targets(stored, draws=self._draws, device=self._device))


def padded_targets(stored: RowTargets, *, draws: int | None, device: torch.device) -> SparseTargets:
    """CSR arrays as padded tensors; `draws` is given for a sampled store, whose weights are counts / draws
    (times p / proposal where the proposal was not p)."""
    lengths = stored.length_N.astype(np.int64)
    width = max(int(lengths.max(initial=0)), 1)
    kept_NK = np.arange(width) < lengths[:, None]

    def padded(values: npt.NDArray[np.generic], fill: float, dtype: type) -> torch.Tensor:
        array = np.full(kept_NK.shape, fill, dtype=dtype)
        array[kept_NK] = values
        return torch.from_numpy(array).to(device)

    def column(values: npt.NDArray[np.float32] | None) -> torch.Tensor | None:
        return None if values is None else torch.from_numpy(values).to(device)

    weight_NK = None
    if stored.count_E is not None:
        assert draws is not None
        weight_E = stored.count_E.astype(np.float32) / draws
        weight_NK = padded(weight_E, 0.0, np.float32)
    return SparseTargets(
        ids_NK=padded(stored.ids_E, -1, np.int64),
        logprob_NK=None if stored.logprob_E is None else padded(stored.logprob_E, -np.inf, np.float32),
        weight_NK=weight_NK,
        log_rest_N=column(stored.log_rest_N),
        entropy_N=column(stored.entropy_N),
        logit_std_N=column(stored.logit_std_N),
        label_logprob_N=column(stored.label_logprob_N),
        lse_tau_N=column(stored.normaliser_N),
    )
