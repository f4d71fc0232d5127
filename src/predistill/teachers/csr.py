"""The two forms of targets: padded tensors, as the objective takes them, and CSR arrays, as a store holds them."""

# N positions  K most entries kept at one position  E all kept entries
from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from predistill.objective import SparseTargets
from predistill.store import RowTargets

__all__ = ["csr_arrays", "padded_targets"]


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
