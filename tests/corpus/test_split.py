"""The held-out split is decided by the text alone, and the split of a smaller fraction lies in that of a larger."""

from __future__ import annotations

import pytest

from predistill.corpus.split import is_held_out, split_hash

TEXTS = [f"document {number}".encode() for number in range(20_000)]


def test_the_hash_never_changes() -> None:
    assert split_hash(b"") == 0x44825DB886DBDE2B
    assert split_hash("春眠不觉晓".encode()) == 0xF5DDD4241F06B12E


@pytest.mark.parametrize("held_out", [0.0, 0.01, 0.3])
def test_the_fraction_is_kept(held_out: float) -> None:
    found = sum(is_held_out(split_hash(text), held_out) for text in TEXTS) / len(TEXTS)
    assert abs(found - held_out) <= 4 * (held_out * (1 - held_out) / len(TEXTS)) ** 0.5


def test_smaller_fractions_are_nested() -> None:
    small, large = ({text for text in TEXTS if is_held_out(split_hash(text), held_out)} for held_out in (0.01, 0.02))
    assert small < large
