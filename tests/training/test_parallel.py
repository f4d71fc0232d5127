"""Two processes are one: gradients and weights, with real processes that FSDP2 shards the student over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.processes import torchrun

# docs/design.md, section 8. Several copies, blocks that are run again, and experts are held to the same.
BOUNDS = {
    "gradients": 1e-5,
    "gradients_accumulated": 1e-5,
    "gradients_same_micro_batches": 1e-5,
    "sgd": 1e-5,
    "adamw": 1e-3,
}


@pytest.fixture(scope="module")
def differences(corpus: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    out = tmp_path_factory.mktemp("ranks") / "found.json"
    ended = torchrun(2, Path(__file__).with_name("ranks.py"), corpus, store, out)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("student", ["tied", "untied", "two copies", "run again", "experts"])
def test_two_processes_equal_one(differences: dict[str, dict[str, float]], student: str) -> None:
    found = differences[student]
    assert {law: found[law] for law in BOUNDS if law in found and found[law] > BOUNDS[law]} == {}
    assert {law: value for law, value in found.items() if law.endswith("_loss") and value > 1e-3} == {}
    assert len(found) >= 4
