"""A store's targets cut again to a narrower truncation: a prefix of every position, or fewer of its draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from predistill.objective import Sampled, SparseTargets, Truncation

__all__ = ["narrowed"]


def narrowed(targets: SparseTargets, rows: npt.NDArray[np.int64], truncation: Truncation) -> SparseTargets:
    """The targets of whole corpus rows `rows`, cut to `truncation`. RecipeError where they hold too little for it."""
    return _thinned(targets, rows, truncation) if isinstance(truncation, Sampled) else truncation.narrow(targets)


def _thinned(targets: SparseTargets, rows: npt.NDArray[np.int64], fewer: Sampled) -> SparseTargets:
    """Fewer of the stored draws, chosen row by row with random numbers that are a row's own."""
    row_len = len(targets) // len(rows)
    device = targets.columns_NK.device
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
