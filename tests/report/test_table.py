from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from predistill.report.records import Record, read_record
from predistill.report.table import group_records, matched_pairs, run_labels, table_rows
from predistill.runs import Run

from .made_runs import made_run


def _record(path: Path, **settings: Any) -> Record:
    return read_record(Run(made_run(path, steps=20, **settings)))


def _wsd(peak: float) -> dict[str, Any]:
    return {"kind": "wsd", "peak": peak, "warmup_frac": 0.05, "decay_frac": 0.3, "floor": 0.1, "inverse": False}


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"fingerprint": "another"},
        {"heldout_tokens": 4096},
        {"recipe": {"tokens": 999}},
        {"recipe": {"batch_tokens": 8192}},
        {"recipe": {"lr": _wsd(0.001)}},
        {"recipe": {"student": {"preset": "nano-m", "from": None}}},
        {"recipe": {"student": {"preset": "nano-s", "from": "runs/before"}}},
        {"recipe": {"optimizer": {"betas": [0.9, 0.99], "weight_decay": 0.1, "clip": 1.0}}},
        {"recipe": {"precision": "bf16"}},
        {"recipe": {"corpus": [{"path": "corpora/nano", "weight": 0.5, "store": None}]}},
        {"ended": 0.5},
        {"evaluated": False},
    ],
    ids=str,
)  # fmt: skip
def test_a_run_that_differs_in_more_than_the_teacher_is_no_baseline(tmp_path: Path, other: dict[str, Any]) -> None:
    distilled = _record(tmp_path / "pd", teacher=True, gain=0.2)
    assert matched_pairs([distilled, _record(tmp_path / "lm", **other)]) == []
    assert len(matched_pairs([distilled, _record(tmp_path / "the-baseline")])) == 1


def test_what_cannot_move_the_loss_does_not_part_a_pair(tmp_path: Path) -> None:
    distilled = _record(tmp_path / "pd", name="pd", teacher=True, gain=0.2)
    changed = {
        "evaluate_every": 10,
        "checkpoint_every": None,
        "keep": 9,
        "micro_batch_rows": 4,
        "alpha": {"kind": "constant", "value": 1.0},
        "loss": {"kind": "mse"},
        "corpus": [{"path": "elsewhere", "weight": 1.0, "store": None}],
    }
    baseline = _record(tmp_path / "lm", name="lm", recipe=changed)
    (pair,) = matched_pairs([baseline, distilled])
    assert distilled.loss_nats is not None
    assert baseline.loss_nats is not None
    assert pair.difference_nats == distilled.loss_nats - baseline.loss_nats
    assert pair.cost_ratio == pytest.approx(0.6 / 0.5)


def test_runs_that_differ_in_their_seed_alone_are_one_group(tmp_path: Path) -> None:
    records = [
        _record(tmp_path / f"{name}-{seed}", name=f"{name}-seed{seed}", seed=seed, teacher=name == "pd")
        for seed in (2, 0, 1)
        for name in ("pd", "lm")
    ]
    groups = group_records(records)
    assert [(group.label, [record.seed for record in group.records]) for group in groups] == [
        ("lm", [0, 1, 2]),
        ("pd", [0, 1, 2]),
    ]


def test_recipes_of_one_name_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    taus = [
        _record(
            tmp_path / f"t{tau}",
            name="base",
            teacher=True,
            gain=tau / 10,
            recipe={"temperature": {"kind": "static", "value": tau}},
        )
        for tau in (1.0, 2.0)
    ]
    sizes = [
        _record(tmp_path / size, name="base", recipe={"student": {"preset": size, "from": None}})
        for size in ("nano-s", "nano-m")
    ]
    assert {group.label for group in group_records([*taus, *sizes])} == {
        "temperature 1.0", "temperature 2.0", "LM, student nano-s", "LM, student nano-m"
    }  # fmt: skip
    stores = [
        _record(tmp_path / "a", name="base", teacher=True),
        _record(tmp_path / "b", name="base", teacher=True, fingerprint="other"),
    ]
    assert len({group.label for group in group_records(stores)}) == 2


def test_a_better_recipe_stands_above_a_worse_one(tmp_path: Path) -> None:
    worse, better = (
        _record(tmp_path / name, name=name, teacher=True, gain=gain, recipe={"alpha": {"kind": name}})
        for name, gain in (("a", 0.1), ("b", 0.4))
    )
    assert [group.label for group in group_records([worse, better, _record(tmp_path / "z", name="z")])] == [
        "z",
        "b",
        "a",
    ]


def test_runs_are_named_by_as_much_of_their_path_as_tells_them_apart(tmp_path: Path) -> None:
    records = [_record(tmp_path / path) for path in ("x/lm", "y/lm")]
    assert run_labels(records) == ["x/lm", "y/lm"]
    assert run_labels(records[:1]) == ["lm"]


def test_the_table_holds_every_run_and_no_figure_that_was_not_measured(tmp_path: Path) -> None:
    records = [
        _record(tmp_path / "lm"),
        _record(tmp_path / "pd", name="pd", teacher=True, gain=0.2),
        _record(tmp_path / "going", ended=0.5, seed=4),
    ]
    rows = {row.run: row for row in table_rows(records)}
    assert set(rows) == {"lm", "pd", "going"}
    assert rows["pd"].baseline == "lm"
    assert rows["pd"].difference_nats == pytest.approx(rows["pd"].loss_nats - rows["lm"].loss_nats)  # type: ignore[operator]
    assert (rows["lm"].baseline, rows["lm"].difference_nats) == (None, None)
    assert (rows["going"].state, rows["going"].progress, rows["going"].loss_nats) == ("unfinished", 0.5, None)


def test_cost_is_processor_time_on_a_cpu_wall_clock_on_an_accelerator_and_nothing_across_machines(
    tmp_path: Path,
) -> None:
    def cost_ratio(**devices: str) -> float | None:
        for name, device in devices.items():
            file = tmp_path / name / "environment.json"
            file.write_text(file.read_text(encoding="utf-8").replace('"cpu (x86_64)"', f'"{device}"'), encoding="utf-8")
        (pair,) = matched_pairs([read_record(Run(tmp_path / name)) for name in ("lm", "pd")])
        return pair.cost_ratio

    made_run(tmp_path / "lm", steps=20)
    made_run(tmp_path / "pd", steps=20, teacher=True)
    assert cost_ratio() == pytest.approx(0.6 / 0.5)
    assert cost_ratio(pd="GPU") is None
    assert cost_ratio(lm="GPU") == pytest.approx(0.31 / 0.27)
