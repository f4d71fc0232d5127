"""The order of the rows is a function of (seed, step): permutations, epoch by epoch, however cut into batches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predistill.corpus import batch_rows
from predistill.corpus.order import _mix


@given(corpus_rows=st.integers(1, 300), seed=st.integers(0, 2**64 - 1))
def test_every_epoch_is_a_permutation(corpus_rows: int, seed: int) -> None:
    epochs = batch_rows(seed=seed, step=0, batch_rows=3 * corpus_rows, corpus_rows=corpus_rows).reshape(3, corpus_rows)
    assert (np.sort(epochs) == np.arange(corpus_rows)).all()


@given(batch=st.integers(1, 50), parts=st.integers(1, 10), step=st.integers(0, 100), corpus_rows=st.integers(1, 99))
def test_batch_size_only_cuts_the_stream(batch: int, parts: int, step: int, corpus_rows: int) -> None:
    whole = batch_rows(seed=5, step=step, batch_rows=batch * parts, corpus_rows=corpus_rows)
    pieces = [
        batch_rows(seed=5, step=step * parts + part, batch_rows=batch, corpus_rows=corpus_rows) for part in range(parts)
    ]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))


def test_seeds_and_epochs_differ() -> None:
    orders = [batch_rows(seed=seed, step=step, batch_rows=100, corpus_rows=100) for seed in (0, 1) for step in (0, 1)]
    assert len({order.tobytes() for order in orders}) == 4


def test_the_order_never_changes_between_versions() -> None:
    order = batch_rows(seed=1, step=2, batch_rows=8, corpus_rows=1000)
    assert order.tolist() == [167, 590, 977, 896, 255, 846, 770, 536]


def test_billions_of_rows_need_no_table() -> None:
    rows = batch_rows(seed=0, step=10**9, batch_rows=4096, corpus_rows=10**13)
    assert len(np.unique(rows)) == 4096
    assert 0 <= rows.min() < 10**11
    assert 99 * 10**11 < rows.max() < 10**13


@pytest.mark.parametrize(("corpus_rows", "epochs"), [(16, 8000), (50, 1000), (257, 200)])
def test_every_row_is_as_likely_at_every_place_and_after_every_other(corpus_rows: int, epochs: int) -> None:
    order = np.array(
        [batch_rows(seed=9, step=epoch, batch_rows=corpus_rows, corpus_rows=corpus_rows) for epoch in range(epochs)]
    )
    for place in (0, corpus_rows // 2, corpus_rows - 1):
        assert_uniform(np.bincount(order[:, place], minlength=corpus_rows))
    assert_uniform(np.bincount((np.diff(order, axis=1) % corpus_rows).ravel(), minlength=corpus_rows)[1:])


def assert_uniform(counts: npt.NDArray[np.int64]) -> None:
    """Chi-square within five standard deviations of its mean."""
    freedom = len(counts) - 1
    chi_square = ((counts - counts.mean()) ** 2).sum() / counts.mean()
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_mix_is_splitmix64() -> None:
    # The first outputs of the reference generator from state 0: state k * golden gives output k + 1.
    golden, state = 0x9E3779B97F4A7C15, np.array([0, 1, 2], dtype=np.uint64)
    mixed = _mix(state * np.uint64(golden))
    assert [f"{value:016x}" for value in mixed] == ["e220a8397b1dcdaf", "6e789e6aa1b965f4", "06c45d188009454f"]
