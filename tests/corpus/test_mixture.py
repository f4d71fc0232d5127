"""A mixture gives every corpus its share, in the order that corpus has alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from predistill.corpus import batch_rows, mixture_rows
from predistill.corpus.order import shuffled

weights = st.lists(st.floats(0.01, 10), min_size=1, max_size=6)


@given(weights=weights, step=st.integers(0, 10**9), batch=st.integers(1, 200))
def test_after_any_number_of_places_every_corpus_had_its_share(weights: list[float], step: int, batch: int) -> None:
    # Corpora so large that a row's place in its shuffled stream is told by its number of earlier picks.
    start = step * batch
    corpus, _ = mixture_rows(seed=0, step=step, batch_rows=batch, corpus_rows=[10] * len(weights), weights=weights)
    share = np.array(weights) / sum(weights)
    counted = np.cumsum(corpus[:, None] == np.arange(len(weights)), axis=0)
    due = share * (np.arange(start, start + batch) + 1)[:, None] - share * start
    assert np.abs(counted - due).max() <= 3 + start * 2.0**-28  # within 1.5 at both ends; weights are rounded


@given(weights=weights, seed=st.integers(0, 99), batch=st.integers(1, 40), steps=st.integers(1, 8))
def test_every_corpus_comes_in_its_own_order(weights: list[float], seed: int, batch: int, steps: int) -> None:
    corpus_rows = [7 + 3 * source for source in range(len(weights))]
    batches = [
        mixture_rows(seed=seed, step=step, batch_rows=batch, corpus_rows=corpus_rows, weights=weights)
        for step in range(steps)
    ]
    corpus, row = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    for source, rows in enumerate(corpus_rows):
        picked = row[corpus == source]
        alone = shuffled(np.arange(len(picked)), seed=seed, corpus_rows=rows, source=source)
        np.testing.assert_array_equal(picked, alone)


@given(weight=st.floats(0.01, 10), seed=st.integers(0, 99), step=st.integers(0, 99))
def test_a_mixture_of_one_is_the_corpus(weight: float, seed: int, step: int) -> None:
    corpus, row = mixture_rows(seed=seed, step=step, batch_rows=12, corpus_rows=[31], weights=[weight])
    assert not corpus.any()
    np.testing.assert_array_equal(row, batch_rows(seed=seed, step=step, batch_rows=12, corpus_rows=31))


def test_equal_corpora_do_not_march_in_step() -> None:
    corpus, row = mixture_rows(seed=0, step=0, batch_rows=200, corpus_rows=[100, 100], weights=[1, 1])
    assert (row[corpus == 0] != row[corpus == 1]).mean() > 0.9
