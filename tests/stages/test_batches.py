"""The batches of training: who gets which rows, and rows of a corpus without a teacher beside taught ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from predistill.corpus import Corpus
from predistill.recipe import read_recipe
from predistill.stages.batches import Batches
from predistill.stages.inputs import open_inputs
from predistill.stages.train import train
from predistill.training.step import MicroBatch
from predistill.world import World
from tests.made import ALONE, BATCH_ROWS, ROW_LEN, recipe_content

CPU = torch.device("cpu")


def windows(content: dict[str, Any], world: World, step: int) -> list[MicroBatch]:
    recipe = read_recipe(content)
    with Batches(recipe, open_inputs(recipe), world) as batches:
        return list(batches.window(step))


@pytest.fixture
def mixed(corpus: Path, store: Path) -> dict[str, Any]:
    """The same corpus twice, taught and not."""
    entries = [{"path": str(corpus), "store": str(store)}, {"path": str(corpus), "weight": 0.5}]
    return recipe_content(corpus, store, corpus=entries)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_processes_share_a_batch_evenly_whatever_their_number(mixed: dict[str, Any], size: int) -> None:
    (whole,) = windows({**mixed, "micro_batch_rows": BATCH_ROWS}, ALONE, 3)
    parts = [windows({**mixed, "micro_batch_rows": BATCH_ROWS}, World(rank, size, CPU), 3) for rank in range(size)]
    assert [len(part) for part in parts] == [1] * size
    assert {len(part[0].ids_BT1) for part in parts} == {BATCH_ROWS // size}
    rows = sorted(map(tuple, torch.cat([part[0].ids_BT1 for part in parts]).tolist()))
    assert rows == sorted(map(tuple, whole.ids_BT1.tolist()))


def test_a_micro_batch_is_so_many_rows_whatever_their_corpus(mixed: dict[str, Any]) -> None:
    for step in range(20):
        assert [len(batch.ids_BT1) for batch in windows(mixed, ALONE, step)] == [4, 4]


def test_rows_of_a_corpus_without_a_store_have_no_target_and_count_as_text(
    mixed: dict[str, Any],
) -> None:
    taught = untaught = 0
    for step in range(10):
        for batch in windows(mixed, ALONE, step):
            assert batch.targets is not None
            assert (batch.label_BT != -100).all()
            present_B = batch.targets.present_N.view(-1, ROW_LEN).all(dim=1)
            assert torch.equal(present_B, batch.targets.present_N.view(-1, ROW_LEN).any(dim=1))
            taught, untaught = taught + int(present_B.sum()), untaught + int((~present_B).sum())
    assert taught / untaught == pytest.approx(2, rel=0.15)


def test_a_mixture_with_an_untaught_corpus_trains_and_counts_its_taught_positions(
    mixed: dict[str, Any], tmp_path: Path
) -> None:
    run = train(read_recipe({**mixed, "alpha": {"kind": "constant", "value": 1.0}}), out=tmp_path / "run")
    last = [line for line in run.metrics() if line["kind"] == "step"][-1]
    # Where nobody teaches, alpha is 0: the loss is no longer kd alone.
    assert min(last["lm"], last["kd"]) < last["loss"] < max(last["lm"], last["kd"])


def test_the_whole_batch_of_a_step_can_be_kept(mixed: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    recipe = read_recipe(mixed)
    with Batches(recipe, open_inputs(recipe), World(1, 2, CPU)) as batches:
        kept = np.load(batches.keep(4, tmp_path / "batches"))
    assert kept["ids"].shape == (BATCH_ROWS, ROW_LEN + 1)
    assert np.array_equal(kept["ids"], Corpus(corpus).rows(kept["row"])[0])
    assert set(kept["corpus"].tolist()) == {0, 1}
