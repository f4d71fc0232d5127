"""How far what a store gives back is from what was put in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from predistill.store.decode import decode_record
from predistill.store.grids import GRIDS
from predistill.store.rows import RowTargets
from predistill.store.streams import encode_row

__all__ = ["kl_to_stored", "logprob_differences", "stored_form"]


def stored_form(row: RowTargets, id_of_rank_V: npt.NDArray[np.int32]) -> RowTargets:
    """One row as a store with this permutation would give it back, on the default grids."""
    rank_of_V = np.empty(len(id_of_rank_V), np.uint32)
    rank_of_V[id_of_rank_V] = np.arange(len(id_of_rank_V), dtype=np.uint32)
    data = encode_row(row, token_hash=0, rank_of_V=rank_of_V, grids=GRIDS)
    return decode_record(data, id_of_rank_V=id_of_rank_V, grids=GRIDS)


def kl_to_stored(online: RowTargets, stored: RowTargets) -> float:
    """Mean over positions of KL(online || stored) in nats, the mass that is not kept being one more bucket.

    An id that only `online` keeps counts into its rest. 0 for sampled targets that are equal, inf for others.
    """
    if online.count_E is not None and stored.count_E is not None:
        return 0.0 if logprob_differences(online, stored)[1] == 0 else float("inf")
    p_E, log_q_E = _matched(online, stored)
    position_E = np.repeat(np.arange(len(stored.length_N)), stored.length_N)
    with np.errstate(divide="ignore", invalid="ignore"):
        kl_E = np.where(p_E > 0, p_E * (np.log(p_E) - log_q_E), 0.0)
        kl_N = np.bincount(position_E, kl_E, minlength=len(stored.length_N))
        rest_N = np.clip(1.0 - np.bincount(position_E, p_E, minlength=len(stored.length_N)), 1e-12, None)
        if online.log_rest_N is not None and np.array_equal(online.length_N, stored.length_N):
            rest_N = np.exp(online.log_rest_N.astype(np.float64))  # exact, where the same ids are kept
        assert stored.log_rest_N is not None
        kl_N += np.where(rest_N > 0, rest_N * (np.log(rest_N) - stored.log_rest_N), 0.0)
    return float(kl_N.mean())


def logprob_differences(online: RowTargets, stored: RowTargets) -> tuple[float, int]:
    """(largest |difference| of the log-probabilities of ids that both hold, positions that do not hold the same ids).

    Of sampled targets counts belong to what is held; log-probabilities are theirs only under another proposal.
    """
    size = int(max(online.ids_E.max(initial=0), stored.ids_E.max(initial=0))) + 1
    (ours, by_ours), (theirs, by_theirs) = _cells(online, size), _cells(stored, size)
    _, place_ours, place_theirs = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
    same_E = np.ones(len(place_ours), bool)
    if online.count_E is not None and stored.count_E is not None:
        same_E = online.count_E[by_ours][place_ours] == stored.count_E[by_theirs][place_theirs]
    held_N = np.bincount(ours[place_ours[same_E]] // size, minlength=len(online.length_N))
    other = int(((held_N != online.length_N) | (held_N != stored.length_N)).sum())
    furthest = 0.0
    if online.logprob_E is not None and stored.logprob_E is not None and len(place_ours):
        difference_E = online.logprob_E[by_ours][place_ours] - stored.logprob_E[by_theirs][place_theirs]
        furthest = float(np.abs(difference_E).max())
    return furthest, other


def _cells(targets: RowTargets, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.intp]]:
    """(a number of each position and id, ascending; which entry it is of)."""
    cell_E = np.repeat(np.arange(len(targets.length_N)), targets.length_N) * size + targets.ids_E
    order_E = np.argsort(cell_E)
    return cell_E[order_E], order_E


def _matched(online: RowTargets, stored: RowTargets) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(online probability of each stored entry, stored log-probability); 0 where online does not keep the id."""
    assert online.logprob_E is not None
    assert stored.logprob_E is not None
    size = int(max(online.ids_E.max(initial=0), stored.ids_E.max(initial=0))) + 1
    ours = np.repeat(np.arange(len(online.length_N)), online.length_N) * size + online.ids_E
    theirs = np.repeat(np.arange(len(stored.length_N)), stored.length_N) * size + stored.ids_E
    order = np.argsort(ours)
    place = np.minimum(np.searchsorted(ours, theirs, sorter=order), len(ours) - 1)
    found = ours[order[place]] == theirs
    p_E = np.where(found, np.exp(online.logprob_E[order[place]].astype(np.float64)), 0.0)
    return p_E, stored.logprob_E.astype(np.float64)
