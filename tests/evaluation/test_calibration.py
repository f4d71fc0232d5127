"""Calibration error and its noise against their definitions, and where they are known."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from predistill.evaluation.calibration import (
    calibration_error,
    calibration_noise,
    expected_calibration_error,
    reliability,
)


def slow_bins(confidence: list[float], correct: list[bool], bins: int) -> list[list[tuple[float, bool]]]:
    """Bins of equal count by confidence, the longer ones first, the empty ones left out."""
    pairs = sorted(zip(confidence, correct, strict=True), key=lambda pair: pair[0])
    parts, start = [], 0
    for number in range(bins):
        size = len(pairs) // bins + (number < len(pairs) % bins)
        parts.append(pairs[start : start + size])
        start += size
    assert start == len(pairs)
    return [part for part in parts if part]


def slow_error(confidence: list[float], correct: list[bool], bins: int) -> float:
    """|accuracy - mean confidence| weighted by count."""
    error = 0.0
    for part in slow_bins(confidence, correct, bins):
        accuracy = sum(right for _, right in part) / len(part)
        error += len(part) / len(confidence) * abs(accuracy - math.fsum(sure for sure, _ in part) / len(part))
    return error


def drawn(positions: int, words: int, draw: np.random.Generator, *, sharpness: float) -> npt.NDArray[np.float64]:
    """A model's distributions [N, V], some sure and some not."""
    score_NV = draw.normal(size=(positions, words)) * sharpness * draw.random((positions, 1))
    weight_NV = np.exp(score_NV)
    return weight_NV / weight_NV.sum(axis=1, keepdims=True)


def labels(prob_NV: npt.NDArray[np.float64], draw: np.random.Generator) -> npt.NDArray[np.int64]:
    """One label a position, drawn from its distribution."""
    reached_NV = prob_NV.cumsum(axis=1) > draw.random((len(prob_NV), 1))
    reached_NV[:, -1] = True
    return reached_NV.argmax(axis=1)


@pytest.mark.parametrize(("count", "bins"), [(1, 15), (7, 15), (100, 15), (1000, 15), (1003, 10), (50, 1)])
def test_it_is_the_definition(count: int, bins: int) -> None:
    draw = np.random.default_rng(count)
    confidence = draw.random(count)  # distinct: ties would leave the bins open
    correct = draw.random(count) < confidence**2
    ours = expected_calibration_error(confidence, correct, bins=bins)
    assert ours == pytest.approx(slow_error(confidence.tolist(), correct.tolist(), bins), abs=1e-12)
    assert ours > 0
    parts = slow_bins(confidence.tolist(), correct.tolist(), bins)
    found = reliability(confidence, correct, bins=bins)
    assert [part.count for part in found] == [len(part) for part in parts]
    assert [part.confidence for part in found] == pytest.approx([sum(x for x, _ in part) / len(part) for part in parts])
    assert [part.accuracy for part in found] == pytest.approx([sum(y for _, y in part) / len(part) for part in parts])
    assert calibration_error(found) == ours
    spread = [math.sqrt(sum(x * (1 - x) for x, _ in part)) for part in parts]
    noise = math.sqrt(2 / math.pi) * sum(spread) / count
    assert calibration_noise(confidence, bins=bins) == pytest.approx(noise, rel=1e-12)


def test_a_model_whose_labels_are_drawn_from_it_has_the_error_that_the_noise_foretells() -> None:
    draw = np.random.default_rng(0)
    prob_NV = drawn(2000, 40, draw, sharpness=4.0)
    confidence, best_N = prob_NV.max(axis=1), prob_NV.argmax(axis=1)
    assert confidence.min() < 0.1 < 0.9 < confidence.max()
    noise = calibration_noise(confidence)
    errors = [expected_calibration_error(confidence, labels(prob_NV, draw) == best_N) for _ in range(200)]
    assert np.mean(errors) == pytest.approx(noise, rel=0.05)  # a draw spreads by a fifth, the mean of 200 by 1.4%
    assert max(errors) < 2 * noise
    # Of four times the positions the noise is half.
    assert calibration_noise(np.tile(confidence, 4)) == pytest.approx(noise / 2, rel=0.01)


@pytest.mark.parametrize("power", [0.6, 1.6])
def test_a_model_that_is_too_sure_or_not_sure_enough_is_far_above_the_noise(power: float) -> None:
    draw = np.random.default_rng(1)
    true_NV = drawn(20_000, 40, draw, sharpness=4.0)
    said_NV = true_NV**power / (true_NV**power).sum(axis=1, keepdims=True)
    confidence, correct = said_NV.max(axis=1), labels(true_NV, draw) == said_NV.argmax(axis=1)
    assert expected_calibration_error(confidence, correct) > 5 * calibration_noise(confidence)
    bins = reliability(confidence, correct)
    surer = sum(part.count for part in bins if part.confidence > part.accuracy) / len(confidence)
    assert surer > 0.9 if power > 1 else surer < 0.1


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
    assert math.isnan(calibration_noise(np.zeros(0)))
    assert reliability(np.zeros(0), np.zeros(0, dtype=bool)) == ()


def test_who_is_certain_has_no_noise() -> None:
    assert calibration_noise(np.ones(100)) == 0.0
