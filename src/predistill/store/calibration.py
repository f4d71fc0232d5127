"""What a capture fixes before its first row: the frequency ranks, and what it measured of itself. One worker measures,
all others read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.errors import StoreError
from predistill.files import parse_sealed_json, sealed_json
from predistill.store import layout
from predistill.store.compare import kl_to_stored, stored_form
from predistill.store.place import Place, open_place
from predistill.store.rows import RowTargets

__all__ = ["CALIBRATION", "Calibration", "measured"]

CALIBRATION = "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """Frequency rank -> token id, and the manifest's `self_test`."""

    permutation: npt.NDArray[np.int32]
    self_test: dict[str, Any]

    @staticmethod
    def of(where: str | Path, sample: Callable[[], Sequence[RowTargets]], *, vocabulary: int) -> Calibration:
        """What the store at `where` was begun with; where there is none, from the targets that `sample` gives."""
        try:
            place = open_place(where)
            while True:
                if (found := _found(place)) is not None:
                    return found
                targets = sample()
                if not layout.is_complete(place):
                    permutation = _by_frequency(targets, vocabulary)
                    place.create(CALIBRATION, sealed_json(_measured(targets, permutation)))
                    place.create(layout.PERMUTATION, layout.pack_permutation(permutation))
                    if layout.is_complete(place):  # at this very moment
                        place.remove(CALIBRATION)
        except OSError as error:
            raise StoreError(
                f"{where}: the calibration of the capture: {error.strerror or error}. Mend that, and run the same "
                "command again to go on."
            ) from None
        except ValueError as error:
            raise StoreError(f"{where}: the calibration of the capture: {error}. Delete it to begin again.") from None


def _found(place: Place) -> Calibration | None:
    """What the store was begun with; a sealed one has it in its manifest."""
    try:
        permutation = layout.unpack_permutation(place.read(layout.PERMUTATION))
        if layout.is_complete(place):
            return Calibration(permutation, layout.read_json(place, layout.MANIFEST)["self_test"])
        return Calibration(permutation, parse_sealed_json(place.read(CALIBRATION)))
    except FileNotFoundError:
        return None


def _by_frequency(sample: Sequence[RowTargets], vocabulary: int) -> npt.NDArray[np.int32]:
    counts = np.zeros(vocabulary, dtype=np.int64)
    for targets in sample:
        counts += np.bincount(targets.ids_E, minlength=vocabulary)
    return np.argsort(-counts, kind="stable").astype(np.int32)


def measured(sample: Sequence[RowTargets]) -> dict[str, float | int]:
    """Means over a sample of targets, of what it carries."""
    columns: dict[str, list[npt.NDArray[np.float32] | None]] = {
        "teacher_loss_nats": [None if t.label_logprob_N is None else -t.label_logprob_N for t in sample],
        "mean_entropy_nats": [t.entropy_N for t in sample],
        "mean_logit_std": [t.logit_std_N for t in sample],
        "mean_entries": [t.length_N.astype(np.float32) for t in sample],
        "mean_kept_mass": [None if t.log_rest_N is None else 1 - np.exp(t.log_rest_N) for t in sample],
    }
    facts: dict[str, float | int] = {"sample_rows": sum(len(t.row_ids) for t in sample)}
    for name, values in columns.items():
        if there := [v for v in values if v is not None]:
            facts[name] = float(np.concatenate(there).mean(dtype=np.float64))
    return facts


def _measured(sample: Sequence[RowTargets], permutation: npt.NDArray[np.int32]) -> dict[str, float | int]:
    """Means over the sample; the KL over the first row of each of its groups."""
    firsts = [targets.row(0) for targets in sample]
    kl = [kl_to_stored(row, stored_form(row, permutation)) for row in firsts]
    return {**measured(sample), "kl_online_to_stored_nats": float(np.mean(kl)), "kl_rows": len(firsts)}
