from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predistill.errors import StoreError
from predistill.files import write_sealed_json
from predistill.store import layout
from predistill.store.place import LocalPlace
from tests.store.made import PERMUTATION, TRUNCATED


def test_every_flipped_bit_of_a_sealed_json_file_is_an_error_even_one_that_json_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "sealed.json"
    write_sealed_json(path, {"format": layout.FORMAT, "version": [2, 0], "kl": 5e-06, "name": "\x1b é", "none": None})
    data = path.read_bytes()
    assert layout.read_json(LocalPlace(tmp_path), "sealed.json")["kl"] == 5e-06
    with path.open("r+b", buffering=0) as file:
        for bit in range(8 * len(data)):
            byte = bit // 8
            os.pwrite(file.fileno(), bytes([data[byte] ^ 1 << bit % 8]), byte)
            with pytest.raises(StoreError):
                layout.read_json(LocalPlace(tmp_path), "sealed.json")
            os.pwrite(file.fileno(), data[byte : byte + 1], byte)
    assert layout.read_json(LocalPlace(tmp_path), "sealed.json")["kl"] == 5e-06


def test_a_file_of_another_format_is_an_error(tmp_path: Path) -> None:
    write_sealed_json(tmp_path / "manifest.json", {"format": "corpus", "version": [2, 0]})
    with pytest.raises(StoreError, match="not of a predistill store"):
        layout.read_json(LocalPlace(tmp_path), "manifest.json")


def test_the_store_id_follows_every_fact_and_the_permutation_and_nothing_else() -> None:
    def store_id(manifest: dict[str, Any], sha256: str = "0") -> bytes:
        return layout.store_id_of(layout.normalised_facts(manifest), sha256)

    reordered = dict(reversed(TRUNCATED.items()))
    assert store_id(TRUNCATED) == store_id(reordered)
    assert len(store_id(TRUNCATED)) == 16
    others = [
        store_id(TRUNCATED, "1"),
        store_id(TRUNCATED | {"teacher": {"name": "another"}}),
        store_id(TRUNCATED | {"grids": {"logprob": {"origin": 0.0, "step": -0.125}}}),
    ]
    assert len({store_id(TRUNCATED), *others}) == 4


def test_a_permutation_comes_back_from_its_file_and_is_none_where_there_is_no_store(tmp_path: Path) -> None:
    assert layout.read_permutation(tmp_path) is None
    (tmp_path / layout.PERMUTATION).write_bytes(layout.pack_permutation(PERMUTATION))
    np.testing.assert_array_equal(layout.read_permutation(tmp_path), PERMUTATION)
    np.testing.assert_array_equal(np.load(tmp_path / "id_permutation.npy"), PERMUTATION)
    for damaged in (b"", b"not an array"):
        (tmp_path / layout.PERMUTATION).write_bytes(damaged)
        with pytest.raises(StoreError, match=r"id_permutation.npy: .*damaged"):
            layout.read_permutation(tmp_path)


@pytest.mark.parametrize("wrong", [[0, 0, 1], [0, 1, 3], [1, 2, 3]])
def test_what_is_not_a_permutation_is_refused(wrong: list[int]) -> None:
    with pytest.raises(AssertionError, match="not a permutation"):
        layout.pack_permutation(wrong)
