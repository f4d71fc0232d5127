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
from predistill.store import Store
from predistill.teachers.csr import padded_targets

__all__ = ["StoredTeacher", "stored_truncation"]


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
