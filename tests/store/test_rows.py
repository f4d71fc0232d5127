from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from predistill.store import RowTargets
from tests.store.made import truncated_row


def joined(rows: list[RowTargets]) -> RowTargets:
    arrays = {
        field.name: np.concatenate([getattr(row, field.name) for row in rows])
        for field in dataclasses.fields(RowTargets)
        if isinstance(getattr(rows[0], field.name), np.ndarray)
    }
    return RowTargets(positions=rows[0].positions, **arrays)


def test_a_row_of_many_is_that_row_alone() -> None:
    rows = [truncated_row(row, positions=9, k=k) for row, k in ((4, 5), (9, 200), (2, 1))]
    many = joined(rows)
    for i, row in enumerate(rows):
        for field in dataclasses.fields(RowTargets):
            np.testing.assert_array_equal(getattr(many.row(i), field.name), getattr(row, field.name), field.name)


@pytest.mark.parametrize("field", ["ids_E", "logprob_E", "length_N", "log_rest_N", "entropy_N", "row_ids"])
def test_an_array_of_another_length_is_not_a_row(field: str) -> None:
    row = truncated_row(0)
    with pytest.raises(AssertionError):
        dataclasses.replace(row, **{field: getattr(row, field)[:-1]})
