"""The watch inside real training, on seeds that its limits were not set on: silent on healthy runs, and failures found
while they happen."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from predistill.errors import RunError
from predistill.recipe import read_recipe
from predistill.runs import Run
from predistill.stages.train import train
from tests.torture.records import SEED, record
from tests.training.make_watch_runs import LM, PD, RUNS, STEPS, Enough, Made, content, made_inputs, patched, until
from tests.training.test_watch import PROVOKED, TWENTIETH

# What steps tell is found in time whatever the seed. Held-out lines are 20 a run, and two runs of one recipe are two
# hundredths apart by chance: what they tell is recorded.
BY_STEPS = ("not_finite", "divergence", "spike", "opposed", "stall")
SEEDS = [1000 + SEED % 1_000_000 + i for i in range(5)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),  # of a schedule that no recipe can ask for
]


def findings(out: Path, name: str, made: Made, *, seed: int, baseline: str | None = None) -> list[dict[str, Any]]:
    """What a run's watch found, as the run wrote it down."""
    path = out / "runs" / name
    watch = {"policy": "warn", "baseline": None if baseline is None else str(out / "runs" / baseline)}
    recipe = made.recipe(read_recipe({**content(name, out, made.content), "seed": seed, "watch": watch}))
    with patched(made.window), suppress(Enough, RunError):  # RunError: given up, after five steps that are not finite
        train(recipe, out=path, on_record=until(made.last))
    return Run(path).findings


def test_on_seeds_that_its_limits_were_not_set_on(tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("watched")
    made_inputs(out)
    healthy: dict[str, list[str]] = {}
    for i, seed in enumerate(SEEDS):
        for arm, choices in (("lm", LM), ("pd", PD)):
            found = findings(out, f"{arm}-{i}", Made(choices), seed=seed, baseline=f"lm-{i}" if arm == "pd" else None)
            healthy[f"{arm}-{i}"] = [f"{finding['kind']} at {finding['step']}" for finding in found]
    provoked: dict[str, dict[str, Any]] = {}
    for name, kind, first, _ in PROVOKED:
        baseline = "lm-0" if name.startswith("pd") else None
        found = findings(out, f"{name}-again", RUNS[name], seed=SEEDS[0], baseline=baseline)
        steps = [finding["step"] for finding in found if finding["kind"] == kind]
        provoked[name] = {"kind": kind, "counted_from": first, "found_at": steps[0] if steps else None}
    record("watch", {"steps": STEPS, "seeds": SEEDS, "healthy": healthy, "provoked": provoked})
    assert {name: found for name, found in healthy.items() if found} == {}
    late = {
        name: facts
        for name, facts in provoked.items()
        if facts["kind"] in BY_STEPS and not 0 <= (facts["found_at"] or 0) - facts["counted_from"] <= TWENTIETH
    }
    assert late == {}
