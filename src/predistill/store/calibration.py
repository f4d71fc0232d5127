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
from predistill.store.place import open_place
from predistill.store.rows import RowTargets

__all__ = ["CALIBRATION", "Calibration"]

CALIBRATION = "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """Frequency rank -> token id, and the manifest's `self_test`."""

    permutation: npt.NDArray[np.int32]
    self_test: dict[str, Any]

    @staticmethod
    def of(where: str | Path, sample: Callable[[], Sequence[RowTargets]], *, vocabulary: int) -> Calibration:
        """What the store at `where` was begun with; where there is none, from the targets that `sample` gives."""
        place = open_place(where)
        try:
            if not place.exists(layout.PERMUTATION) or not place.exists(CALIBRATION):
                targets = sample()
                permutation = _by_frequency(targets, vocabulary)
                place.create(CALIBRATION, sealed_json(_measured(targets, permutation)))
                place.create(layout.PERMUTATION, layout.pack_permutation(permutation))
            found = layout.unpack_permutation(place.read(layout.PERMUTATION))
            return Calibration(found, parse_sealed_json(place.read(CALIBRATION)))
        except (OSError, ValueError) as error:
            raise StoreError(f"{place}: the calibration of the capture: {error}. Delete it to begin again.") from None


def _by_frequency(sample: Sequence[RowTargets], vocabulary: int) -> npt.NDArray[np.int32]:
    counts = np.zeros(vocabulary, dtype=np.int64)
    for targets in sample:
        counts += np.bincount(targets.ids_E, minlength=vocabulary)
    return np.argsort(-counts, kind="stable").astype(np.int32)


def _measured(sample: Sequence[RowTargets], permutation: npt.NDArray[np.int32]) -> dict[str, float | int]:
    """Means over the sample; the KL over the first row of each of its groups."""

    def mean(values: list[npt.NDArray[np.float32] | None]) -> float:
        return float(np.concatenate([v for v in values if v is not None]).mean(dtype=np.float64))

    firsts = [targets.row(0) for targets in sample]
    kl = [kl_to_stored(row, stored_form(row, permutation)) for row in firsts]
    facts: dict[str, float | int] = {
        "sample_rows": sum(len(t.row_ids) for t in sample),
        "teacher_loss_nats": -mean([t.label_logprob_N for t in sample]),
        "mean_entropy_nats": mean([t.entropy_N for t in sample]),
        "mean_logit_std": mean([t.logit_std_N for t in sample]),
        "mean_entries": mean([t.length_N.astype(np.float32) for t in sample]),
        "kl_online_to_stored_nats": float(np.mean(kl)),
        "kl_rows": len(firsts),
    }
    if sample[0].log_rest_N is not None:
        facts["mean_kept_mass"] = 1.0 - mean([np.exp(t.log_rest_N) for t in sample if t.log_rest_N is not None])
    return facts
