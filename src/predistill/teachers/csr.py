"""The two forms of targets: padded tensors, as the objective takes them, and CSR arrays, as a store holds them."""

# N positions  K most entries kept at one position
from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from predistill.objective import SparseTargets
from predistill.store import RowTargets
from predistill.teachers.padded import padded_arrays

__all__ = ["csr_arrays", "padded_targets"]


def padded_targets(
    stored: RowTargets, *, draws: int | None, device: torch.device, tau: float | None = None
) -> SparseTargets:
    """CSR arrays as padded tensors; `draws` and `tau` as in `padded_arrays`."""
    arrays = padded_arrays(stored, draws=draws, tau=tau)
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return SparseTargets(**tensors, draws=draws, tau=tau)


def csr_arrays(targets: SparseTargets) -> dict[str, npt.NDArray[Any]]:
    """The arrays of RowTargets; those that the truncation does not make are absent."""
    kept_NK = (targets.columns_NK >= 0).cpu().numpy()
    place_E = np.flatnonzero(kept_NK)  # numpy gathers in a third of the time of torch's boolean index

    def entries(values_NK: torch.Tensor, dtype: type) -> npt.NDArray[Any]:
        return values_NK.cpu().numpy().take(place_E).astype(dtype, copy=False)

    arrays: dict[str, npt.NDArray[Any]] = {
        "length_N": np.count_nonzero(kept_NK, axis=1).astype(np.int32),
        "ids_E": entries(targets.columns_NK, np.int32),
    }
    if targets.logprob_NK is not None:
        arrays["logprob_E"] = entries(targets.logprob_NK, np.float32)
    if targets.weight_NK is not None:
        arrays["count_E"] = entries(_count_NK(targets), np.int32)
    columns = {
        "log_rest_N": targets.log_rest_N,
        "entropy_N": targets.entropy_N,
        "logit_std_N": targets.logit_std_N,
        "label_logprob_N": targets.label_logprob_N,
        "normaliser_N": targets.lse_tau_N,
    }
    return arrays | {name: column.cpu().numpy() for name, column in columns.items() if column is not None}


def _count_NK(targets: SparseTargets) -> torch.Tensor:
    """How many draws fell on each entry: weight = count / draws * p / q of the proposal q."""
    assert targets.weight_NK is not None
    assert targets.draws is not None
    count_NK = targets.weight_NK * targets.draws
    if targets.tau is not None:
        assert targets.logprob_NK is not None
        assert targets.lse_tau_N is not None
        count_NK /= (targets.logprob_NK * (1 - 1 / targets.tau) + targets.lse_tau_N[:, None]).exp()
    return count_NK.round().int()
