from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predistill.report.gains import Gain, gains, student_t_975
from predistill.report.headline import Headline, headline
from predistill.report.records import Record, read_record
from predistill.report.table import group_records
from predistill.runs import Run

from .made_runs import TEACHER_NATS, made_run


def _runs(root: Path, recipes: dict[str, list[float]], **baseline: Any) -> list[Record]:
    """A baseline for each seed, and a recipe's runs at the given gains, seed by seed."""
    seeds = range(max(map(len, recipes.values()), default=1))
    paths = [made_run(root / f"lm-{seed}", name="lm", seed=seed, steps=20, **baseline) for seed in seeds]
    paths += [
        made_run(
            root / f"{name}-{seed}",
            name=name,
            seed=seed,
            teacher=True,
            gain=gain,
            steps=20,
            recipe={"alpha": {"kind": name}},
        )
        for name, its_gains in recipes.items()
        for seed, gain in enumerate(its_gains)
    ]
    return [read_record(Run(path)) for path in paths]


def _said(records: list[Record]) -> tuple[Headline, list[Gain]]:
    found = gains(group_records(records), records)
    return headline(found, records), found


@pytest.mark.parametrize(
    ("freedom", "quantile"),  # the printed table of Student's t, two-sided 5 %
    [
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (4, 2.776),
        (5, 2.571),
        (6, 2.447),
        (9, 2.262),
        (10, 2.228),
        (29, 2.045),
        (120, 1.980),
    ],
)
def test_the_t_quantile_is_that_of_the_printed_table(freedom: int, quantile: float) -> None:
    assert student_t_975(freedom) == pytest.approx(quantile, abs=5e-4)


def test_the_interval_holds_the_true_difference_95_times_in_100() -> None:
    draws = np.random.default_rng(0).normal(size=(20_000, 3))
    half = student_t_975(2) * draws.std(axis=1, ddof=1) / math.sqrt(3)
    assert (np.abs(draws.mean(axis=1)) <= half).mean() == pytest.approx(0.95, abs=0.005)


def test_mean_interval_and_share_are_those_of_the_definition(tmp_path: Path) -> None:
    _, (gain,) = _said(_runs(tmp_path, {"pd": [0.20, 0.26, 0.23]}))
    difference = np.array([pair.distilled.loss_nats - pair.baseline.loss_nats for pair in gain.pairs])  # type: ignore[operator]
    half = 4.302653 * difference.std(ddof=1) / math.sqrt(3)
    assert gain.mean == pytest.approx(difference.mean())
    assert gain.interval == pytest.approx((difference.mean() - half, difference.mean() + half), rel=1e-5)
    assert gain.share == pytest.approx(difference.mean() / np.mean([pair.baseline.loss_nats for pair in gain.pairs]))


def test_a_run_repeated_at_the_same_seed_is_no_second_observation(tmp_path: Path) -> None:
    records = _runs(tmp_path, {"pd": [0.3]})
    again = made_run(
        tmp_path / "pd-again", name="pd", teacher=True, gain=0.31, steps=20, recipe={"alpha": {"kind": "pd"}}
    )
    _, (gain,) = _said([*records, read_record(Run(again))])
    assert len(gain.group.records) == 2
    assert len(gain.pairs) == 1


def test_a_gain_over_seeds_is_told_with_its_size_its_interval_and_the_number_of_seeds(tmp_path: Path) -> None:
    told, (gain,) = _said(_runs(tmp_path, {"pd": [0.25, 0.26, 0.27, 0.26]}))
    assert told.verdict.startswith("The teacher helped: ")
    assert f"{-gain.mean:.3f} nats" in told.verdict
    assert "over 4 seeds" in told.verdict
    assert "95\N{NARROW NO-BREAK SPACE}% interval" in told.paragraphs[0]
    assert "every seed" in told.paragraphs[0]


def test_harm_is_told_as_harm(tmp_path: Path) -> None:
    told, _ = _said(_runs(tmp_path, {"pd": [-0.25, -0.26, -0.27, -0.26]}))
    assert told.verdict.startswith("The teacher did harm: ")
    assert "higher" in told.verdict


def test_an_interval_that_holds_zero_is_no_clear_gain(tmp_path: Path) -> None:
    told, (gain,) = _said(_runs(tmp_path, {"pd": [0.5, -0.4, 0.1]}))
    assert gain.interval is not None
    assert gain.interval[0] < 0 < gain.interval[1]
    assert told.verdict.startswith("No clear gain: ")
    assert "may be chance" in told.verdict


@pytest.mark.parametrize(("gain", "words"), [(0.3, "With the teacher"), (-0.3, "The teacher did not help")])
def test_one_seed_claims_no_certainty(tmp_path: Path, gain: float, words: str) -> None:
    told, (found,) = _said(_runs(tmp_path, {"pd": [gain]}))
    assert found.interval is None
    assert told.verdict.startswith(words)
    assert "on one seed" in told.verdict
    assert "One seed gives no interval" in told.paragraphs[0]


def test_the_best_of_several_is_said_to_be_picked(tmp_path: Path) -> None:
    told, found = _said(_runs(tmp_path, {"a": [0.1, 0.11], "b": [0.3, 0.31], "c": [-0.2, -0.21]}))
    assert [gain.group.label for gain in found] == ["b", "a", "c"]
    assert "in the best of 3 recipes" in told.verdict
    assert "best of 3 distilled recipes (2 ahead of their baseline)" in told.paragraphs[0]


def test_the_way_to_the_teacher_and_the_cost_are_told(tmp_path: Path) -> None:
    told, (gain,) = _said(_runs(tmp_path, {"pd": [0.3]}))
    baseline = gain.pairs[0].baseline.loss_nats
    assert baseline is not None
    assert (
        f"{100 * -gain.mean / (baseline - TEACHER_NATS):.0f}\N{NARROW NO-BREAK SPACE}% of the way" in told.paragraphs[1]
    )
    assert "In processor time, training cost 1.20 times its baseline" in told.paragraphs[1]
    assert "the teacher’s pass over the corpus is not in this" in told.paragraphs[1]


def test_without_a_baseline_nothing_is_claimed(tmp_path: Path) -> None:
    told, found = _said(_runs(tmp_path, {"pd": [0.3]}, fingerprint="another corpus"))
    assert found == []
    assert told.verdict == "No distilled run here has a matched baseline."
    assert not re.search(r"\d\.\d", " ".join(told.paragraphs))


def test_runs_that_do_not_count_are_counted(tmp_path: Path) -> None:
    records = _runs(tmp_path, {"pd": [0.3]})
    records += [read_record(Run(made_run(tmp_path / "going", name="pd", seed=7, teacher=True, ended=0.5, steps=20)))]
    told, (gain,) = _said(records)
    assert len(gain.pairs) == 1
    assert told.paragraphs[-1] == "Not counted: 1 of 3 runs unfinished."
    nothing, _ = _said(records[-1:])
    assert nothing.verdict == "Not finished: 50\N{NARROW NO-BREAK SPACE}% trained."
    assert _said(records[1:])[0].verdict == "Nothing to compare yet."
