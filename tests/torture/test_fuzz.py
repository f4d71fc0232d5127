"""Headers, tables, indexes, manifests and parts of wrong content under right checksums: refused, or read; no crash, no
hang, no memory beyond a bound. 4 in 10 cases change records; half the stores are sampled ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.store.fuzz import MORE_BYTES, SECONDS, fuzz
from tests.torture.records import SEED, record

CASES = 4000


def test_forged_stores_are_refused_or_read(tmp_path: Path) -> None:
    outcomes, failures = fuzz(tmp_path, seed=random.randrange(1 << 32), cases=100)
    assert failures == []
    assert sum(outcomes.values()) == 100


@pytest.mark.slow
def test_thousands_of_forged_stores_are_refused_or_read(tmp_path: Path) -> None:
    outcomes, failures = fuzz(tmp_path, seed=SEED, cases=CASES)
    assert failures == []
    assert sum(outcomes.values()) == CASES
    entry = {"outcomes": dict(sorted(outcomes.items())), "seconds a case at most": SECONDS}
    record("forged headers", {**entry, "memory at most": MORE_BYTES})
