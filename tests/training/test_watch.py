"""Every failure is found where it was made, in real runs; and nothing is found in healthy ones.

The runs of watch_runs.json.gz are real: make_watch_runs.py makes them. What no nano run can show is written by hand.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from predistill.recipe import Recipe
from predistill.runs import Run
from predistill.training.watch import KINDS, Finding, Watch, WatchChoice
from predistill.training.watch.heldout import Curve
from predistill.training.watch.window import share

Line = dict[str, Any]

RUNS = json.loads(gzip.decompress(Path(__file__).with_name("watch_runs.json.gz").read_bytes()))
STEPS, BATCH_TOKENS, FAULT = 200, 4096, 61  # FAULT: the first step that it touches
TWENTIETH = STEPS // 20
HEALTHY = [f"{arm}-{seed}" for arm in ("lm", "pd") for seed in range(5)]

# run, what is found, the first step that shows it or from which it is counted, which findings may come with it
PROVOKED: list[tuple[str, str, int, set[str]]] = [
    ("lm-not-finite", "not_finite", FAULT, {"spike", "divergence"}),
    ("lm-divergence", "divergence", FAULT, {"spike"}),
    ("pd-divergence", "divergence", FAULT, {"spike"}),
    ("lm-lr-high", "divergence", 1, {"plateau"}),
    ("lm-spike", "spike", FAULT, set()),
    ("pd-spike", "spike", FAULT, set()),
    ("lm-plateau", "plateau", FAULT, set()),
    ("pd-plateau", "plateau", FAULT, {"over_regularised"}),
    ("pd-top-3", "over_regularised", 20, {"calibration_drift", "plateau"}),
    (
        "pd-star-0",
        "under_regularised",
        150,
        set(),
    ),  # meant as healthy: one seed, level with its baseline at 150 and 160
    ("pd-alpha-.01", "under_regularised", 100, set()),
    ("pd-untrained", "opposed", 10, {"over_regularised"}),
    ("pd-slow-store", "stall", FAULT, set()),
    ("pd-certain-store", "calibration_drift", FAULT, {"spike", "plateau", "over_regularised"}),
    ("lm-one-batch", "plateau", FAULT, set()),
    ("lm-few-rows", "calibration_drift", 110, {"plateau"}),
]


def lines(name: str) -> list[Line]:
    """The lines of a kept run's metrics.jsonl, in their order."""
    rows = [
        {"kind": kind, **dict(zip(columns, row, strict=True))}
        for kind, columns in RUNS[name].items()
        for row in zip(*columns.values(), strict=True)
    ]
    return [
        {**row, "tokens": row["step"] * BATCH_TOKENS} for row in sorted(rows, key=lambda row: row["step"])
    ]  # stable: a step's line before the held-out line after it


def watch(name: str) -> Watch:
    """A watch over a kept run; a taught one is compared with the LM run of the same seed."""
    seed = name[-1] if name in HEALTHY else "0"
    return Watch(WatchChoice(), steps=STEPS, taught=name.startswith("pd"), baseline=lines(f"lm-{seed}"))


def found(name: str) -> list[Finding]:
    """Everything that is found in a kept run."""
    watching = watch(name)
    return [finding for line in lines(name) for finding in watching.see(line)]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_is_silent(name: str) -> None:
    assert len(lines(name)) == STEPS + 20
    assert found(name) == []


def test_healthy_runs_of_40_steps_are_silent(lm_run: Run, pd_run: Run) -> None:
    for run in (lm_run, pd_run):
        watching = Watch(WatchChoice(), steps=40, taught=run is pd_run, baseline=lm_run.metrics())
        assert [finding for line in run.metrics() for finding in watching.see(line)] == []


@pytest.mark.parametrize(("name", "kind", "first", "beside"), PROVOKED)
def test_a_failure_is_found_within_a_twentieth_of_the_run(name: str, kind: str, first: int, beside: set[str]) -> None:
    findings = found(name)
    assert {finding.kind for finding in findings} - beside == {kind}
    finding = next(finding for finding in findings if finding.kind == kind)
    assert first <= finding.step <= first + TWENTIETH


def test_every_kind_is_provoked() -> None:
    assert {kind for _, kind, _, _ in PROVOKED} == set(KINDS)


def sentence_keys(text: str) -> set[tuple[str, str]]:
    """The recipe keys that a sentence names, as (axis, field)."""
    return set(re.findall(r"\b([a-z_]+)\.([a-z_]+)\b", text))


def fields_of(axis: str) -> set[str]:
    """The fields of every choice of one axis of the recipe."""
    todo, fields = [Recipe.model_fields[axis].annotation], set()
    while todo:
        part = todo.pop()
        todo.extend(get_args(part))
        if isinstance(part, type) and issubclass(part, BaseModel):
            fields |= set(part.model_fields)
        fields |= set(getattr(part, "__dataclass_fields__", ()))
    return fields


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kind, _, _ in PROVOKED])
def test_a_sentence_says_where_and_names_keys_that_a_recipe_has(name: str, kind: str) -> None:
    finding = next(finding for finding in found(name) if finding.kind == kind)
    assert finding.sentence.startswith(f"step {finding.step:,}: ")
    assert finding.sentence.endswith(".")
    named = sentence_keys(finding.sentence)
    assert named or " tokens" in finding.sentence
    for axis, field in named:
        assert field in fields_of(axis), f"{axis}.{field}"


def test_only_what_loses_the_weights_is_severe_and_an_episode_begins_where_the_fault_does() -> None:
    for name, kind, first, _ in PROVOKED:
        finding = next(finding for finding in found(name) if finding.kind == kind)
        assert finding.severe == (kind in ("not_finite", "divergence"))
        if finding.severe and first == FAULT:
            assert finding.since == FAULT


def test_a_resumed_run_finds_what_is_left_and_a_replayed_one_the_same() -> None:
    for name, *_ in PROVOKED:
        whole, findings = lines(name), found(name)
        for cut in (1, len(whole) // 3, len(whole) - 1):
            resumed = watch(name)
            before = [finding for line in whole[:cut] for finding in resumed.see(line)]
            assert before == findings[: len(before)]
            assert [finding for line in whole[cut:] for finding in resumed.see(line)] == findings[len(before) :]


def test_a_taught_run_that_gains_nothing_on_its_baseline_is_told_once_in_the_second_half() -> None:
    watching = Watch(WatchChoice(), steps=STEPS, taught=True, baseline=lines("pd-0"))
    findings = [finding for line in lines("pd-0") for finding in watching.see(line)]
    assert [(finding.kind, finding.since, finding.step, finding.value) for finding in findings] == [
        ("under_regularised", 100, 110, 0.0)
    ]


# What follows is written by hand: runs as they would be read from metrics.jsonl.


def made(
    steps: int, *, seed: int = 0, noise: float = 0.01, change: Callable[[int, Line], Line] = lambda _, line: line
) -> Iterator[Line]:
    """A taught run whose losses fall as a power of its tokens, `change`d step by step; held-out lines every 5 %."""
    luck = random.Random(seed)
    for step in range(1, steps + 1):
        batch = luck.gauss(0, noise)
        lm, kl = 2.0 + 4 * step**-0.25 + batch, 0.3 + 2 * step**-0.25 + batch / 2
        line = {
            "kind": "step", "step": step, "tokens": 1000 * step, "lm": lm, "kd": kl, "kl": kl, "alpha": 0.9, "lr": 1e-3,
            "loss": 0.1 * lm + 0.9 * kl, "grad_norm": 0.5, "seconds": 0.1 * step, "stall_s": 0.001,
        }  # fmt: skip
        yield change(step, line)
        if step % (steps // 20) == 0:
            heldout = {"loss_nats": 2.0 + 4 * step**-0.25, "ece": 0.01, "corpus": "c"}
            yield {**change(step, heldout), "kind": "heldout", "step": step, "tokens": 1000 * step}


def finding_in(run: Iterator[Line], *, steps: int, baseline: Sequence[Line] = ()) -> Iterator[Finding]:
    """What is found in a taught run, one after the other."""
    watching = Watch(WatchChoice(), steps=steps, taught=True, baseline=baseline)
    return (finding for line in run for finding in watching.see(line))


def findings_of(run: Iterator[Line], *, steps: int, baseline: Sequence[Line] = ()) -> list[Finding]:
    """Everything that is found in a taught run."""
    return list(finding_in(run, steps=steps, baseline=baseline))


def from_half(steps: int, **faults: Callable[[float], float]) -> Callable[[int, Line], Line]:
    """A change of those columns that `faults` name, from the middle of a run on."""

    def change(step: int, line: Line) -> Line:
        if step <= steps // 2:
            return line
        return {**line, **{name: fault(line[name]) for name, fault in faults.items() if name in line}}

    return change


@pytest.mark.parametrize("steps", [200, 2_000])
def test_a_longer_run_is_silent_and_its_failures_are_found_within_a_twentieth_too(steps: int) -> None:
    assert findings_of(made(steps), steps=steps) == []
    faults: dict[str, Callable[[int, Line], Line]] = {
        "not_finite": from_half(steps, loss=lambda _: math.nan),
        "divergence": from_half(steps, lm=lambda lm: 1.3 * lm, kd=lambda kd: 1.3 * kd),
        "plateau": from_half(steps, loss_nats=lambda _: 2.9),
        "opposed": from_half(steps, lm=lambda lm: 0.97 * lm, kl=lambda kl: 1.3 * kl),
        "stall": from_half(steps, stall_s=lambda _: 0.05),
        "calibration_drift": from_half(steps, ece=lambda _: 0.06),
        "over_regularised": from_half(steps, loss_nats=lambda loss: 1.02 * loss),
    }
    baseline = [line for line in made(steps) if line["kind"] == "heldout"]
    better = [{**line, "loss_nats": 1.005 * line["loss_nats"]} for line in baseline]
    for kind, fault in faults.items():
        found_first = next(
            finding
            for finding in finding_in(made(steps, change=fault), steps=steps, baseline=better)
            if finding.kind == kind
        )
        lines_needed = 2 if kind in ("plateau", "over_regularised", "calibration_drift") else 1
        assert steps // 2 < found_first.step <= steps // 2 + lines_needed * steps // 20


def test_a_failure_is_told_again_only_after_it_was_over() -> None:
    def change(step: int, line: Line) -> Line:
        return {**line, "lm": 2 * line["lm"]} if step in (100, 101, 102, 150) and "lm" in line else line

    assert [(finding.kind, finding.step) for finding in findings_of(made(200, change=change), steps=200)] == [
        ("spike", 100),
        ("spike", 150),
    ]


def test_the_mix_of_the_losses_is_not_looked_at() -> None:
    """Alpha from .9 to .1 at once moves the loss by far more than a spike does."""

    def change(step: int, line: Line) -> Line:
        return (
            {**line, "alpha": 0.1, "loss": 0.9 * line["lm"] + 0.1 * line["kd"]} if "lm" in line and step > 100 else line
        )

    assert findings_of(made(200, change=change), steps=200) == []


def test_a_rising_kl_is_explained_by_a_falling_alpha() -> None:
    rising = from_half(200, lm=lambda lm: 0.97 * lm, kl=lambda kl: 1.3 * kl)

    def schedule(step: int, line: Line) -> Line:
        return {**rising(step, line), "alpha": 0.9 if step <= 100 else 0.9 * (1 - step / 200)}

    assert [finding.kind for finding in findings_of(made(200, change=rising), steps=200)] == ["opposed"]
    assert findings_of(made(200, change=schedule), steps=200) == []


def test_a_rising_lm_loss_is_no_divergence_where_the_kd_loss_does_not_rise() -> None:
    lm_alone = from_half(400, lm=lambda lm: 1.3 * lm, kd=lambda kd: 0.8 * kd)
    both = from_half(400, lm=lambda lm: 1.3 * lm, kd=lambda kd: 1.3 * kd)
    assert {finding.kind for finding in findings_of(made(400, change=lm_alone), steps=400)} == {"spike"}
    assert {finding.kind for finding in findings_of(made(400, change=both), steps=400)} == {"spike", "divergence"}


def test_one_long_wait_is_no_stall() -> None:
    def resumed(step: int, line: Line) -> Line:
        late = 5.0 if step >= 90 else 0.0
        return (
            {**line, "seconds": line["seconds"] + late, "stall_s": 5.0 if step == 90 else 0.001}
            if "lm" in line
            else line
        )

    assert findings_of(made(200, change=resumed), steps=200) == []


def test_each_held_out_corpus_is_compared_with_itself() -> None:
    """A run ahead of its baseline on one corpus and behind on another is told of the other alone."""

    def both(run: Iterator[Line], harm: float) -> Iterator[Line]:
        for line in run:
            yield line
            if line["kind"] == "heldout":
                yield {**line, "corpus": "d", "loss_nats": 5 + harm * line["loss_nats"]}

    baseline = list(
        both((line | {"loss_nats": 1.02 * line["loss_nats"]} for line in made(200) if line["kind"] == "heldout"), 1)
    )
    findings = findings_of(both(made(200), 1.2), steps=200, baseline=baseline)
    assert [finding.kind for finding in findings] == ["over_regularised"]
    assert "nats on d," in findings[0].sentence


def test_a_curve_is_a_line_in_the_logarithm_of_tokens_and_ends_where_it_was_measured() -> None:
    curve = Curve([{"tokens": tokens, "loss_nats": 10 - 0.7 * math.log(tokens)} for tokens in (100, 300, 1000)])
    for tokens in (100, 150, 300, 777, 1000):
        assert curve(tokens) == pytest.approx(10 - 0.7 * math.log(tokens), abs=1e-12)
    assert curve(99) is None
    assert curve(1001) is None
    assert Curve([])(100) is None


@pytest.mark.parametrize(
    ("kind", "bad", "worse"),
    [
        ("calibration_drift", {"ece": lambda _: 0.06}, {"ece": lambda _: 0.1}),
        ("over_regularised", {"loss_nats": lambda loss: 1.02 * loss}, {"loss_nats": lambda loss: 1.04 * loss}),
    ],
)
def test_what_shows_on_two_held_out_lines_is_told_at_one_where_it_is_twice_as_bad(
    kind: str, bad: dict[str, Callable[[float], float]], worse: dict[str, Callable[[float], float]]
) -> None:
    baseline = [{**line, "loss_nats": 1.005 * line["loss_nats"]} for line in made(200) if line["kind"] == "heldout"]
    for faults, step in ((bad, 120), (worse, 110)):
        findings = findings_of(made(200, change=from_half(200, **faults)), steps=200, baseline=baseline)
        assert next(finding.step for finding in findings if finding.kind == kind) == step


def test_windows_are_shares_of_a_run_with_a_floor_and_a_ceiling() -> None:
    assert [share(steps, 0.02, least=20) for steps in (40, 1_000, 10_000, 1_000_000)] == [20, 20, 200, 200]
