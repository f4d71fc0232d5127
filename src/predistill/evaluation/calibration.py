"""Calibration: bins of equal count by confidence, the expected calibration error that follows from them (after Naeini
et al. 2015), and how much of it is noise."""

# N positions  n positions of one bin
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from predistill.evaluation.breakdown import equal_parts

__all__ = ["Bin", "calibration_error", "calibration_noise", "expected_calibration_error", "reliability"]

BINS = 15

Confidence = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Bin:
    """Positions of about the same confidence: how sure the model was on average, and how often it was right."""

    confidence: float
    accuracy: float
    count: int


def reliability(confidence: Confidence, correct: npt.NDArray[np.bool_], *, bins: int = BINS) -> tuple[Bin, ...]:
    """The bins, the least confident first; fewer where there are fewer positions.

    `confidence` is the largest predicted probability at each position, `correct` whether that word was the label.
    """
    return tuple(
        Bin(float(confidence[part_n].mean(dtype=np.float64)), float(correct[part_n].mean()), len(part_n))
        for part_n in equal_parts(confidence, bins)
    )


def calibration_error(bins: Sequence[Bin]) -> float:
    """Mean over bins, weighted by count, of |mean confidence - accuracy|; 0..1, NaN without positions."""
    count = sum(part.count for part in bins)
    if count == 0:
        return math.nan
    return sum(part.count * abs(part.confidence - part.accuracy) for part in bins) / count


def expected_calibration_error(confidence: Confidence, correct: npt.NDArray[np.bool_], *, bins: int = BINS) -> float:
    """`calibration_error` of the bins of `reliability`."""
    return calibration_error(reliability(confidence, correct, bins=bins))


def calibration_noise(confidence: Confidence, *, bins: int = BINS) -> float:
    """The calibration error to be expected of a perfectly calibrated model with these confidences; NaN without any.

    It is not zero, since accuracy is counted over finitely many positions (Roelofs et al. 2022). In a bin,
    sum(correct - confidence) has mean 0 and variance sum(c * (1 - c)), positions taken as independent, and a normal
    variable of standard deviation s has E|x| = s * sqrt(2 / pi). An error of this size says nothing against a model.
    """
    if len(confidence) == 0:
        return math.nan
    sure_N = confidence.astype(np.float64)
    deviations = [math.sqrt((sure_N[part_n] * (1 - sure_N[part_n])).sum()) for part_n in equal_parts(confidence, bins)]
    return math.sqrt(2 / math.pi) * sum(deviations) / len(confidence)
