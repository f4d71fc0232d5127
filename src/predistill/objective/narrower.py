"""Which cut can be made of which: a partial order, checked before anything is read."""

from __future__ import annotations

import math

from predistill.errors import RecipeError
from predistill.objective.truncate import Full, Sampled, Truncation

__all__ = ["check_narrower"]


def check_narrower(wanted: Truncation, kept: Truncation) -> None:
    """Raise RecipeError unless `wanted` can be made of targets that were kept by `kept`.

    A top-p and a top-k are the ends of one family (p, k), ordered in both; draws narrow to fewer draws only.
    """
    if isinstance(wanted, Sampled) and isinstance(kept, Sampled):
        if wanted.draws <= kept.draws and wanted.proposal_temperature == kept.proposal_temperature:
            return
    elif isinstance(wanted, Full):
        if isinstance(kept, Full):
            return
    elif not isinstance(wanted, Sampled) and not isinstance(kept, Sampled):
        (wanted_p, wanted_k), (kept_p, kept_k) = _mass_and_count(wanted), _mass_and_count(kept)
        if wanted_p <= kept_p and wanted_k <= kept_k:
            return
    raise RecipeError(
        f"truncation is {wanted}, and the store kept {kept}, which is not wider. "
        "Ask for what the store kept or for less of the same kind, or capture again."
    )


def _mass_and_count(truncation: Truncation) -> tuple[float, float]:
    return getattr(truncation, "p", 1.0), getattr(truncation, "k", math.inf)
