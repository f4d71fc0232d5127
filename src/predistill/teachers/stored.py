"""Targets out of a store: for exactly the asked rows, checked against the very tokens that the student sees."""

# n rows  T position  N = n*T  K kept entries  E all kept entries
from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter

from predistill.fingerprint import row_hash
from predistill.objective import Sampled, SparseTargets, Truncation
from predistill.store import RowTargets, Store

__all__ = ["StoredTeacher", "padded_targets", "stored_truncation"]


class StoredTeacher:
    """A store read through the recipe's (narrower or equal) truncation."""

    def __init__(
        self, store: Store, *, truncation: Truncation, device: torch.device, needs: tuple[str, ...] = ()
    ) -> None:
        """`needs`: what the objective reads beside the kept entries, such as entropy_N."""
        self._store, self._truncation, self._device = store, truncation, device
        self._kept = stored_truncation(store)
        self._draws = self._kept.draws if isinstance(self._kept, Sampled) else None
        proposal = self._kept.proposal_temperature if isinstance(self._kept, Sampled) else 1.0
        self._tau = None if proposal == 1 else proposal
        self._needs = needs if self._draws is None else (*needs, "entropy_N")

    def targets(self, rows: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]) -> SparseTargets:
        """Targets [n*T, K] of corpus rows `rows`, whose token ids are `ids` [n, T + 1]; a row's never depend on which
        rows stand beside it.

        Raises StoreError when a record is damaged or was made from other tokens.
        """
        hashes = np.array([row_hash(row) for row in ids], dtype=np.uint64)
        stored = self._store.rows(rows, token_hashes=hashes, fields=tuple(dict.fromkeys(self._needs)))
        targets = padded_targets(stored, draws=self._draws, device=self._device, tau=self._tau)
        if self._truncation == self._kept:  # cut again, the grid's rounding could drop the last entry of a top-p
            return targets
        if isinstance(self._truncation, Sampled):
            return _thinned(targets, rows, self._truncation, self._device)
        return self._truncation.narrow(targets)


def stored_truncation(store: Store) -> Truncation:
    """What decided which entries the store holds."""
    kept = store.manifest.get("truncation") or {k: v for k, v in store.manifest["sampling"].items() if k != "seed"}
    truncation: Truncation = TypeAdapter(Truncation).validate_python(kept)
    return truncation


def padded_targets(
    stored: RowTargets, *, draws: int | None, device: torch.device, tau: float | None = None
) -> SparseTargets:
    """CSR arrays as padded tensors; `draws` is given for a sampled store, whose weights are counts / draws, and `tau`
    where a normaliser is stored: the temperature that it is of."""
    lengths = stored.length_N.astype(np.int64)
    width = max(int(lengths.max(initial=0)), 1)
    kept_NK = np.arange(width) < lengths[:, None]

    def padded(values: npt.NDArray[np.generic], fill: float, dtype: type) -> torch.Tensor:
        array: npt.NDArray[np.generic] = np.full(kept_NK.shape, fill, dtype=dtype)
        array[kept_NK] = values
        return torch.from_numpy(array).to(device)

    def column(values: npt.NDArray[np.float32] | None) -> torch.Tensor | None:
        return None if values is None else torch.from_numpy(values).to(device)

    weight_NK = None
    if stored.count_E is not None:
        assert draws is not None
        weight_E = stored.count_E.astype(np.float32) / draws
        if tau is not None:  # importance weights: p / q of the proposal q
            assert stored.logprob_E is not None
            assert stored.normaliser_N is not None
            normaliser_E = np.repeat(stored.normaliser_N, lengths)
            weight_E = weight_E * np.exp(stored.logprob_E * np.float32(1 - 1 / tau) + normaliser_E)
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
        draws=draws,
        tau=tau,
    )


def _thinned(
    targets: SparseTargets, rows: npt.NDArray[np.int64], fewer: Sampled, device: torch.device
) -> SparseTargets:
    """Fewer of the stored draws, chosen row by row with random numbers that are a row's own."""
    row_len = len(targets) // len(rows)
    parts = [
        fewer.narrow(
            targets.select(slice(i * row_len, (i + 1) * row_len)),
            generator=torch.Generator(device).manual_seed(int(row)),
        )
        for i, row in enumerate(rows)
    ]
    weights = [part.weight_NK for part in parts if part.weight_NK is not None]
    logprobs = [part.logprob_NK for part in parts if part.logprob_NK is not None]
    return replace(
        targets,
        ids_NK=torch.cat([part.columns_NK for part in parts]),
        weight_NK=torch.cat(weights),
        logprob_NK=torch.cat(logprobs) if logprobs else None,
        draws=fewer.draws,
    )
