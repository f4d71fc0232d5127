"""A store that keeps the log-sum-exp at one temperature teaches through tempered tails as the live teacher does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from predistill.corpus import Corpus
from predistill.errors import RecipeError
from predistill.objective import Ghost, Static, TopPK, distill_loss
from predistill.recipe import read_recipe
from predistill.runs import Run
from predistill.stages.capture import capture
from predistill.stages.inputs import open_inputs
from predistill.stages.train import train
from predistill.store import Store
from predistill.teachers.live import LiveTeacher
from predistill.teachers.load import load_teacher
from predistill.teachers.stored import StoredTeacher
from tests.made import recipe_content

KEPT = TopPK(p=0.95, k=100)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tempered(corpus: Path, lm_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("store") / "tempered"
    capture(lm_run.path, corpus=corpus, out=out, truncation=KEPT, lse_tau=2.0)
    return out


def test_stored_and_live_give_the_same_tempered_loss(corpus: Path, lm_run: Run, tempered: Path) -> None:
    source, rows = Corpus(corpus), np.array([3, 40, 9])
    ids, _ = source.rows(rows)
    model = load_teacher(lm_run.path, vocab_size=source.vocab_size, device=CPU, dtype=torch.float32)
    live = LiveTeacher(model, truncation=KEPT, vocab_size=source.vocab_size, tau=2.0).targets(rows, ids)
    stored = StoredTeacher(Store(tempered), truncation=KEPT, device=CPU).targets(rows, ids)
    assert stored.tau == live.tau == 2.0
    assert (stored.lse_tau_N - live.lse_tau_N).abs().max() <= 1 / 512 + 1e-6
    logit_NV = torch.randn(len(live), source.vocab_size, generator=torch.Generator().manual_seed(1))
    label_N = torch.from_numpy(ids[:, 1:]).flatten()
    kd = [
        distill_loss(logit_NV, label_N, t, alpha=1.0, tail=Ghost(), temperature=Static(value=2.0)).kd
        for t in (live, stored)
    ]
    assert float((kd[0] - kd[1]).abs()) / len(live) < 2e-3


def test_a_tempered_ghost_trains_on_it_at_that_temperature_alone(
    corpus: Path, store: Path, tempered: Path, tmp_path: Path
) -> None:
    def recipe(kept: Path, tau: float) -> object:
        content = recipe_content(corpus, kept, tail={"kind": "ghost"}, temperature={"kind": "static", "value": tau})
        return read_recipe(content | {"tokens": 2048})

    run = train(recipe(tempered, 2.0), out=tmp_path / "run")
    assert all(np.isfinite(line["kd"]) for line in run.metrics() if line["kind"] == "step")
    for kept, tau, found in ((tempered, 3.0, "one at 2"), (store, 2.0, "none")):
        with pytest.raises(RecipeError, match=f"these have {found}"):
            open_inputs(recipe(kept, tau))


@pytest.mark.parametrize("tau", [0.0, -1.0])
def test_a_temperature_that_is_none_is_refused(corpus: Path, lm_run: Run, tmp_path: Path, tau: float) -> None:
    with pytest.raises(RecipeError, match="--lse-tau is a temperature above 0"):
        capture(lm_run.path, corpus=corpus, out=tmp_path / "s", truncation=KEPT, lse_tau=tau)
