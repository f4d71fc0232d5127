"""Calibration error against its definition, and where it is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from predistill.evaluation.calibration import expected_calibration_error


def slow_error(confidence: list[float], correct: list[bool], bins: int) -> float:
    """Bins of equal count by confidence, the longer ones first; |accuracy - mean confidence| weighted by count."""
    pairs = sorted(zip(confidence, correct, strict=True), key=lambda pair: pair[0])
    error, start = 0.0, 0
    for number in range(bins):
        size = len(pairs) // bins + (number < len(pairs) % bins)
        part = pairs[start : start + size]
        start += size
        if part:
            accuracy = sum(right for _, right in part) / len(part)
            error += len(part) / len(pairs) * abs(accuracy - math.fsum(sure for sure, _ in part) / len(part))
    assert start == len(pairs)
    return error


@pytest.mark.parametrize(("count", "bins"), [(1, 15), (7, 15), (100, 15), (1000, 15), (1003, 10), (50, 1)])
def test_it_is_the_definition(count: int, bins: int) -> None:
    draw = np.random.default_rng(count)
    confidence = draw.random(count)  # distinct: ties would leave the bins open
    correct = draw.random(count) < confidence**2
    ours = expected_calibration_error(confidence, correct, bins=bins)
    assert ours == pytest.approx(slow_error(confidence.tolist(), correct.tolist(), bins), abs=1e-12)
    assert ours > 0


def test_a_perfectly_calibrated_case_has_none() -> None:
    # 15 bins of 100: in bin b, exactly b + 1 of 100 are right, and it is sure of just that.
    confidence = np.repeat(np.arange(1, 16) / 100, 100)
    correct = np.concatenate([np.arange(100) < right for right in range(1, 16)])
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.0, abs=1e-12)
    assert expected_calibration_error(confidence + 0.2, correct) == pytest.approx(0.2)


def test_always_sure_and_always_wrong_is_1_and_always_right_0() -> None:
    sure = np.ones(40)
    assert expected_calibration_error(sure, np.zeros(40, dtype=bool)) == 1.0
    assert expected_calibration_error(sure, np.ones(40, dtype=bool)) == 0.0


def test_the_order_of_positions_does_not_matter() -> None:
    draw = np.random.default_rng(0)
    confidence, order = draw.random(500), draw.permutation(500)
    correct = draw.random(500) < 0.5
    ours = expected_calibration_error(confidence, correct)
    assert expected_calibration_error(confidence[order], correct[order]) == pytest.approx(ours, abs=1e-12)


def test_float32_confidence_is_summed_without_loss() -> None:
    draw = np.random.default_rng(0)
    confidence = draw.random(200_000).astype(np.float32)
    correct = draw.random(200_000) < confidence
    exact = expected_calibration_error(confidence.astype(np.float64), correct)
    assert expected_calibration_error(confidence, correct) == pytest.approx(exact, abs=1e-6)


def test_nothing_measured_is_no_number() -> None:
    assert math.isnan(expected_calibration_error(np.zeros(0), np.zeros(0, dtype=bool)))
