"""Targets out of a store: for exactly the asked rows, checked against the very tokens that the student sees."""

# n rows  T position  N = n*T  K kept entries
from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter

from predistill.objective import Sampled, SparseTargets, Truncation
from predistill.store import RawRows, Store
from predistill.teachers.finish import Finisher
from predistill.teachers.narrowed import narrowed
from predistill.teachers.reading import Arrays, Reading, raw_rows_of, read_targets

__all__ = ["StoredTeacher", "stored_truncation"]


class StoredTeacher:
    """A store read through the recipe's (narrower or equal) truncation."""

    def __init__(
        self, store: Store, *, truncation: Truncation, device: torch.device, needs: tuple[str, ...] = ()
    ) -> None:
        """`needs`: what the objective reads beside the kept entries, such as entropy_N."""
        kept = stored_truncation(store)
        # Cut again as it was kept, the grid's rounding could drop the last entry of a top-p.
        self._cut = None if truncation == kept else truncation
        self._store, self._device = store, device
        self._draws, self._tau = None, store.manifest.get("lse_tau")
        if isinstance(kept, Sampled):
            self._draws, needs = kept.draws, (*needs, "entropy_N")
            self._tau = None if kept.proposal_temperature == 1 else kept.proposal_temperature
        raw = device.type == "cuda"
        self.reading = Reading(
            fields=tuple(dict.fromkeys(needs)),
            draws=self._draws,
            tau=self._tau,
            raw=raw,
            cut=None if raw or self._cut is None else TypeAdapter(Truncation).dump_python(self._cut, mode="json"),
        )
        self._finisher: Finisher | None = None

    @property
    def path(self) -> str:
        """Where the store lies."""
        return self._store.path

    def targets(self, rows: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]) -> SparseTargets:
        """Targets [n*T, K] of corpus rows `rows`, whose token ids are `ids` [n, T + 1]; a row's never depend on which
        rows stand beside it. A row that is not in the store has no target.

        Raises StoreError when a record is damaged or was made from other tokens.
        """
        return self.finish(rows, read_targets(self._store, rows, ids, self.reading))

    def finish(self, rows: npt.NDArray[np.int64], arrays: Arrays) -> SparseTargets:
        """The targets of what `read_targets` read of corpus rows `rows` as `reading` says, here or in another
        process."""
        if self.reading.raw:
            targets = self._finished(raw_rows_of(arrays, rows))
            return targets if self._cut is None else narrowed(targets, rows, self._cut)
        draws = self._cut.draws if isinstance(self._cut, Sampled) else self._draws
        tensors = {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}
        return SparseTargets(**tensors, draws=draws, tau=self._tau)

    def _finished(self, raw: RawRows) -> SparseTargets:
        if self._finisher is None:
            self._finisher = Finisher(
                id_of_rank_V=self._store.permutation,
                grids=self._store.grids,
                draws=self._draws,
                tau=self._tau,
                device=self._device,
            )
        return self._finisher(raw)


def stored_truncation(store: Store) -> Truncation:
    """What decided which entries the store holds."""
    kept = store.manifest.get("truncation") or {k: v for k, v in store.manifest["sampling"].items() if k != "seed"}
    truncation: Truncation = TypeAdapter(Truncation).validate_python(kept)
    return truncation
