"""Finishing on a device: the tensors that the CPU's path through numpy makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from predistill.objective import SparseTargets
from predistill.store import Store, StoreWriter, finish
from predistill.teachers.finish import Finisher
from predistill.teachers.padded import padded_arrays
from predistill.teachers.reading import _compact, raw_rows_of
from tests.store.made import PERMUTATION, SAMPLED, TRUNCATED, sampled_row, truncated_row

ROWS = 12
MADE = {
    "truncated": (TRUNCATED, {}),
    "sampled": (SAMPLED, {}),
    "tempered": ({**SAMPLED, "sampling": {"kind": "sampled", "draws": 50, "proposal_temperature": 2.0}}, {"tau": 2.0}),
}


@pytest.fixture(scope="module", params=list(MADE))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Any]]:
    facts, options = MADE[request.param]
    path = tmp_path_factory.mktemp("made") / "store"
    make = sampled_row if "sampling" in facts else truncated_row
    with StoreWriter(path, manifest=facts, permutation=PERMUTATION) as writer:
        for row in range(0, ROWS, 2):  # every second row is not there
            writer.write(row, row, make(row, **options))
        writer.seal({}, rows_expected=ROWS, partial=True)
    sampled = "sampling" in facts
    return Store(path), {"draws": 50 if sampled else None, "tau": options.get("tau")}


@pytest.mark.parametrize("rows", [[0, 4, 2], [3, 2, 5, 2], [1, 3]], ids=["there", "some", "none"])
def test_the_devices_arithmetic_is_that_of_numpy(made: tuple[Store, dict[str, Any]], rows: list[int]) -> None:
    store, options = made
    asked = np.array(rows)
    stored = store.rows(asked, absent_ok=True)
    raw = store.raw_rows(asked, absent_ok=True)
    again = finish(raw, id_of_rank_V=store.permutation, grids=store.grids)
    for name in ("row_ids", "length_N", "ids_E", "logprob_E", "count_E", "log_rest_N", "entropy_N", "normaliser_N"):
        np.testing.assert_array_equal(getattr(again, name), getattr(stored, name), err_msg=name)
    finisher = Finisher(id_of_rank_V=store.permutation, grids=store.grids, device=torch.device("cpu"), **options)
    found = finisher(raw_rows_of(_compact(raw), asked))
    tensors = {name: torch.from_numpy(array) for name, array in padded_arrays(stored, **options).items()}
    expected = SparseTargets(**tensors, **options)
    for name in SparseTargets.__dataclass_fields__:
        ours, theirs = getattr(found, name), getattr(expected, name)
        if not isinstance(theirs, torch.Tensor):
            assert ours == theirs, name
        elif name in ("logprob_NK", "weight_NK"):
            # numpy adds a position's probabilities in float32, the device in float64
            torch.testing.assert_close(ours, theirs, atol=5e-7, rtol=1e-6, msg=name)
        else:
            assert torch.equal(ours, theirs), name
