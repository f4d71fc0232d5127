"""Expected calibration error over bins of equal count, by confidence (after Naeini et al. 2015)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["expected_calibration_error"]


def expected_calibration_error(
    confidence: npt.NDArray[np.floating], correct: npt.NDArray[np.bool_], *, bins: int = 15
) -> float:
    """Mean over bins, weighted by count, of |mean confidence - accuracy|; 0..1.

    `confidence` is the largest predicted probability at each position, `correct` whether that word was the label.
    """
    if len(confidence) == 0:
        return float("nan")
    order = np.argsort(confidence, kind="stable")
    gaps = [
        abs(float(confidence[part].sum()) - float(correct[part].sum()))
        for part in np.array_split(order, bins)
        if len(part)
    ]
    return float(sum(gaps) / len(confidence))
