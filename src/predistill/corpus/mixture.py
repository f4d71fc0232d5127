"""Several corpora as one stream: which corpus, and which of its rows, each place of a global batch takes.

Stateless and exact: after n places, every corpus has had its share of n to within one or two, and its rows come in the
very order it would have alone, so that no row of a corpus is seen twice in an epoch of that corpus.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from predistill.corpus.order import shuffled

__all__ = ["mixture_rows"]

SHARE_UNITS = 1 << 30  # weights are rounded to this many parts of their sum

Int64s = npt.NDArray[np.int64]


def mixture_rows(
    *, seed: int, step: int, batch_rows: int, corpus_rows: Sequence[int], weights: Sequence[float]
) -> tuple[Int64s, Int64s]:
    """The global batch `step` of a mixture: (corpus index, row of that corpus), each int64[batch_rows].

    Weights are positive and need not sum to one. A mixture of one corpus is `batch_rows` exactly.
    """
    assert len(corpus_rows) == len(weights) > 0
    assert min(weights) > 0
    units = [max(1, round(weight / sum(weights) * SHARE_UNITS)) for weight in weights]
    # What is left of the stream after the corpora before: its positions, and where in the batch they stand.
    place = np.arange(batch_rows, dtype=np.int64)
    position = step * batch_rows + place
    corpus, row = np.empty_like(place), np.empty_like(place)
    for source, rows in enumerate(corpus_rows):
        taken = _share(position, units[source], sum(units[source:]))
        takes = _share(position + 1, units[source], sum(units[source:])) > taken
        corpus[place[takes]] = source
        row[place[takes]] = shuffled(taken[takes], seed=seed, corpus_rows=rows, source=source)
        place, position = place[~takes], (position - taken)[~takes]
    assert len(place) == 0
    return corpus, row


def _share(count: Int64s, part: int, whole: int) -> Int64s:
    """round(count * part / whole) in integers that do not overflow."""
    return count // whole * part + (count % whole * part + whole // 2) // whole
