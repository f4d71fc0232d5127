"""CSR arrays padded to a rectangle, in numpy alone: what a process that only reads can make without torch."""

# N positions  K most entries kept at one position  E all kept entries
from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.store import RowTargets

__all__ = ["padded_arrays"]


def padded_arrays(stored: RowTargets, *, draws: int | None, tau: float | None = None) -> dict[str, npt.NDArray[Any]]:
    """The arrays of `SparseTargets`, by its names. `draws` is given for a sampled store, whose weights are counts /
    draws, and `tau` where a normaliser is stored: the temperature that it is of (sampled: of the proposal)."""
    width = max(int(stored.length_N.max(initial=0)), 1)
    narrow = np.min_scalar_type(width)  # comparing bytes takes a third of the time
    kept_NK = np.arange(width, dtype=narrow) < stored.length_N.astype(narrow)[:, None]

    def padded(values: npt.NDArray[Any], fill: float, dtype: type) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = np.full(kept_NK.shape, fill, dtype=dtype)
        array[kept_NK] = values
        return array

    arrays = {"ids_NK": padded(stored.ids_E, -1, np.int32)}
    if stored.logprob_E is not None:
        arrays["logprob_NK"] = padded(stored.logprob_E, -np.inf, np.float32)
    if stored.count_E is not None:
        assert draws is not None
        weight_E = stored.count_E.astype(np.float32) / draws
        if tau is not None:  # importance weights: p / q of the proposal q
            assert stored.logprob_E is not None
            assert stored.normaliser_N is not None
            normaliser_E = np.repeat(stored.normaliser_N, stored.length_N)
            weight_E = weight_E * np.exp(stored.logprob_E * np.float32(1 - 1 / tau) + normaliser_E)
        arrays["weight_NK"] = padded(weight_E, 0.0, np.float32)
    columns = {
        "log_rest_N": stored.log_rest_N,
        "entropy_N": stored.entropy_N,
        "logit_std_N": stored.logit_std_N,
        "label_logprob_N": stored.label_logprob_N,
        "lse_tau_N": stored.normaliser_N,
    }
    return arrays | {name: column for name, column in columns.items() if column is not None}
