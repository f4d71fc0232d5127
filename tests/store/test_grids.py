from __future__ import annotations

import math

import numpy as np
import pytest

from predistill.errors import StoreError
from predistill.store.grids import GRIDS, grids_from_manifest, grids_to_manifest, log_of_logit, logit_of_log


@pytest.mark.parametrize("name", GRIDS)
def test_every_value_within_a_grid_comes_back_within_half_a_step(name: str) -> None:
    grid = GRIDS[name]
    ends = sorted((grid.origin, grid.origin + grid.step * 65534))
    values = np.random.default_rng(1).uniform(*ends, size=10_000)
    assert np.abs(grid.decode(grid.encode(values)) - values).max() <= abs(grid.step) / 2 * (1 + 1e-4)
    points = grid.decode(np.arange(65535, dtype=np.uint16))
    np.testing.assert_array_equal(grid.encode(points), np.arange(65535))


@pytest.mark.parametrize("name", GRIDS)
def test_a_value_outside_its_grid_is_clamped_to_the_grids_end(name: str) -> None:
    grid = GRIDS[name]
    beyond = np.array([-np.inf, -1e9, 1e9, np.inf])
    expected = [0, 0, 65534, 65534] if grid.step > 0 else [65534, 65534, 0, 0]
    np.testing.assert_array_equal(grid.encode(beyond), expected)


def test_the_rest_and_the_kept_part_are_both_exact_to_a_fifth_of_a_percent_from_e_minus_30_to_its_complement() -> None:
    grid = GRIDS["rest_logit"]
    logits = np.concatenate((np.linspace(-30, 15, 4001), [math.log(0.005 / 0.995), math.log(0.95 / 0.05)]))
    log_rest = -np.log1p(np.exp(-logits))  # float64, from the definition rest = 1 / (1 + e^-x)
    found_rest, found_kept = log_of_logit(grid.decode(grid.encode(logit_of_log(log_rest))).astype(np.float64))
    assert np.abs(found_rest - log_rest).max() <= 1 / 512 + 1e-6
    assert np.abs(found_kept - -np.log1p(np.exp(logits))).max() <= 1 / 512 + 1e-6


def test_logit_and_logarithm_of_the_rest_are_inverse_and_keep_minus_infinity() -> None:
    log_rest = np.array([-np.inf, -100.0, -30.0, -1.0, -0.5, -1e-6])
    np.testing.assert_allclose(log_of_logit(logit_of_log(log_rest))[0], log_rest, rtol=1e-9)
    assert log_of_logit(np.array([-np.inf]))[1] == 0.0
    assert logit_of_log(np.array([0.0, 1e-9]))[0] == np.inf


def test_grids_survive_the_manifest_and_a_name_outside_the_format_is_an_error() -> None:
    assert grids_from_manifest(grids_to_manifest(GRIDS)) == GRIDS
    assert grids_from_manifest({"entropy": {"origin": 0, "step": 0.5}})["entropy"].step == 0.5
    with pytest.raises(StoreError, match="unknown grid 'entrpy'"):
        grids_from_manifest({"entrpy": {"origin": 0, "step": 0.5}})
    with pytest.raises(StoreError, match="an origin and a step"):
        grids_from_manifest({"entropy": 0.5})
