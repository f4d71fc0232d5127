"""The two forms of targets: padded tensors, as the objective takes them, and CSR arrays, as a store holds them."""

# N positions  K most entries kept at one position
from __future__ import annotations

from typing import Any

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
    ids_NK = targets.columns_NK
    kept_NK = ids_NK >= 0
    arrays = {
        "length_N": kept_NK.sum(dim=1).int(),
        "ids_E": ids_NK[kept_NK].int(),
        "logprob_E": None if targets.logprob_NK is None else targets.logprob_NK[kept_NK],
        "count_E": None if targets.weight_NK is None else _count_NK(targets)[kept_NK],
        "log_rest_N": targets.log_rest_N,
        "entropy_N": targets.entropy_N,
        "logit_std_N": targets.logit_std_N,
        "label_logprob_N": targets.label_logprob_N,
        "normaliser_N": targets.lse_tau_N if targets.sampled else None,
    }
    return {name: array.cpu().numpy() for name, array in arrays.items() if array is not None}


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
