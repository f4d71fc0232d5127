"""How far a store is from what was put in: nothing for draws whatever their order, the grid's rounding for the rest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from predistill.store.compare import kl_to_stored, logprob_differences, stored_form
from tests.store.made import PERMUTATION, sampled_row, truncated_row


@pytest.mark.parametrize("tau", [None, 1.5])
def test_draws_come_back_as_they_were_in_the_order_of_their_ranks(tau: float | None) -> None:
    online = sampled_row(3, tau=tau)
    stored = stored_form(online, PERMUTATION)
    assert not np.array_equal(online.ids_E, stored.ids_E)
    assert kl_to_stored(online, stored) == 0
    furthest, other = logprob_differences(online, stored)
    assert other == 0
    assert furthest <= (0 if tau is None else 1 / 128)


def test_one_draw_that_differs_is_seen() -> None:
    online = sampled_row(3)
    stored = stored_form(online, PERMUTATION)
    count_E = stored.count_E.copy()
    count_E[0] += 1
    other = replace(stored, count_E=count_E)
    assert kl_to_stored(online, other) == np.inf
    assert logprob_differences(online, other)[1] == 1
    assert logprob_differences(sampled_row(4), stored)[1] == 32


def test_a_kept_part_is_off_by_the_grid() -> None:
    online = truncated_row(5)
    stored = stored_form(online, PERMUTATION)
    assert 0 < kl_to_stored(online, stored) < 2e-5
    furthest, other = logprob_differences(online, stored)
    assert 0 < furthest <= 1 / 64
    assert other == 0
    assert logprob_differences(truncated_row(5, k=20), stored)[1] > 0
