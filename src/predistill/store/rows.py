"""What a store takes and gives: the teacher's targets of whole corpus rows, as numpy arrays in CSR form.

T positions of a row   n rows   N = n * T positions   E kept entries of all N positions, position after position
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

__all__ = ["OPTIONAL_FIELDS", "RowTargets"]

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

OPTIONAL_FIELDS = ("label_logprob_N", "entropy_N", "logit_std_N")


@dataclass(frozen=True, slots=True)
class RowTargets:
    """The kept part of the teacher's next-token distributions over n whole rows of T positions.

    Truncated targets carry `logprob_E` and `log_rest_N` and no counts; sampled ones carry `count_E`, and `logprob_E`
    with `normaliser_N` when they were drawn from a proposal other than the teacher's own distribution.
    All logarithms are natural, over the teacher's full softmax at temperature 1.
    """

    row_ids: npt.NDArray[np.int64]  # [n] numbers of the rows in the corpus
    positions: int  # T
    length_N: Ints  # entries of each position; 0 = no target here
    ids_E: Ints  # token ids, in descending probability; sampled: distinct within a position, any order
    logprob_E: Floats | None = None
    count_E: Ints | None = None  # how many draws fell on the id
    log_rest_N: Floats | None = None  # log of the mass that is not kept; -inf = everything is kept
    label_logprob_N: Floats | None = None
    entropy_N: Floats | None = None  # nats
    logit_std_N: Floats | None = None
    normaliser_N: Floats | None = None  # log sum_v p_v^(1/tau) at the proposal's tau; truncated: at the one asked for

    def __post_init__(self) -> None:
        assert len(self.length_N) == len(self.row_ids) * self.positions
        assert int(self.length_N.sum()) == len(self.ids_E)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray) and field.name != "row_ids":
                assert value.shape == (self.length_N if field.name.endswith("_N") else self.ids_E).shape, field.name

    @property
    def sampled(self) -> bool:
        """Whether these are counted draws (kind 2) and not a truncated distribution (kind 1)."""
        return self.count_E is not None

    def row(self, i: int) -> RowTargets:
        """The targets of the i-th row alone (views, not copies)."""
        n0, n1 = i * self.positions, (i + 1) * self.positions
        e0 = int(self.length_N[:n0].sum(dtype=np.int64))
        e1 = e0 + int(self.length_N[n0:n1].sum(dtype=np.int64))
        cut = {"_N": slice(n0, n1), "_E": slice(e0, e1)}
        arrays = {
            field.name: value[cut[field.name[-2:]]]
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), np.ndarray) and field.name != "row_ids"
        }
        return RowTargets(row_ids=self.row_ids[i : i + 1], positions=self.positions, **arrays)
