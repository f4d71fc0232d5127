"""Trackers show what metrics.jsonl holds: every value, every step once, also after a stop, a kill or a rollback."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predistill.errors import RecipeError
from predistill.runs import Metrics, Run
from predistill.training import trackers
from predistill.training.trackers import open_trackers, scalars, tracked

pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")

FINDING = {"kind": "spike", "step": 4, "since": 4, "sentence": "step 4: the LM loss is 9.00. Lower lr.peak."}
CONFIG = {"name": "tiny", "lr": {"kind": "constant", "value": 0.1}}


def lines(first: int, last: int, *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """What training writes for steps `first` to `last`: values that no float32 holds, and a held-out line now and
    then."""
    for step in range(first, last + 1):
        noise = np.random.default_rng([seed, step]).random(4).tolist()
        yield {
            "kind": "step", "step": step, "tokens": 512 * step, "loss": noise[0], "lm": noise[1],
            "kd": None if step < 3 else noise[2], "kl": None if step < 3 else noise[3], "alpha": 0.9, "lr": 1e-3 / step,
            "grad_norm": 1.0 + noise[0], "seconds": 0.1 * step, "tokens_per_s": 5120.0, "stall_s": 0.001,
            **({"skipped": True} if step == 5 else {}),
        }  # fmt: skip
        if step % 3 == 0:
            for corpus in ("corpora/nano", "corpora/other"):
                yield {
                    "kind": "heldout", "step": step, "tokens": 512 * step, "loss_nats": noise[3], "ece": 0.02,
                    "corpus": corpus,
                }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.open(tmp_path / "run", recipe=CONFIG, environment={"identity": {}, "steps": 20})


def trained(run: Run, first: int, last: int, *, names: tuple[str, ...] = ("tensorboard",), seed: int = 0) -> None:
    """A session of training from step `first` on, which ends without closing anything when it is killed."""
    metrics = Metrics(run, resume_step=first - 1)
    with tracked(names, run.path, config=CONFIG) as log:
        for line in lines(first, last, seed=seed):
            metrics.write(line)
            log(line)
    metrics.close()


def in_tensorboard(run: Run) -> dict[str, list[tuple[int, float]]]:
    """Curve -> (step, value), as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def in_metrics(run: Run) -> dict[str, list[tuple[int, float]]]:
    """The same of metrics.jsonl, in float32, which is what an event file holds."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in run.metrics():
        for tag, value in scalars(line).items():
            curves.setdefault(tag, []).append((line["step"], float(np.float32(value))))
    return curves


def test_tensorboard_has_every_value_of_the_metrics(run: Run) -> None:
    trained(run, 1, 10)
    curves = in_tensorboard(run)
    assert curves == in_metrics(run)
    assert set(curves) == {
        "tokens", "train/loss", "train/lm", "train/kd", "train/kl", "train/alpha", "train/lr", "train/grad_norm",
        "train/tokens_per_s", "train/stall_s", "heldout/loss_nats/corpora/nano", "heldout/ece/corpora/nano",
        "heldout/loss_nats/corpora/other", "heldout/ece/corpora/other",
    }  # fmt: skip
    assert [step for step, _ in curves["train/loss"]] == list(range(1, 11))
    assert [step for step, _ in curves["train/kd"]] == list(range(3, 11))


def test_a_resumed_run_shows_every_step_once_and_what_it_did_the_second_time(run: Run) -> None:
    trained(run, 1, 10)
    trained(run, 7, 14, seed=1)  # stopped at 10, its checkpoint is of step 6
    trained(run, 13, 20, seed=2)
    curves = in_tensorboard(run)
    assert curves == in_metrics(run)
    assert [step for step, _ in curves["train/loss"]] == list(range(1, 21))


def test_a_killed_run_has_lost_nothing(run: Run) -> None:
    (tracker,) = open_trackers(["tensorboard"], run, config=CONFIG, resume_step=0)
    metrics = Metrics(run, resume_step=0)
    for line in lines(1, 8):
        metrics.write(line)
        tracker.log(line)
    assert in_tensorboard(run) == in_metrics(run), "though neither is closed"
    metrics.close()
    tracker.close()
    trained(run, 6, 10, seed=1)
    assert in_tensorboard(run) == in_metrics(run)


def test_a_run_that_was_not_tracked_from_its_beginning_is_shown_from_its_beginning(run: Run) -> None:
    trained(run, 1, 6, names=())
    trained(run, 7, 10)
    assert in_tensorboard(run) == in_metrics(run)


def test_a_run_that_goes_back_to_a_checkpoint_shows_what_became_of_it(run: Run) -> None:
    (tracker,) = open_trackers(["tensorboard"], run, config=CONFIG, resume_step=0)
    metrics = Metrics(run, resume_step=0)
    for line in lines(1, 8):
        metrics.write(line)
        tracker.log(line)
    metrics.close()
    metrics = Metrics(run, resume_step=5)
    for line in lines(6, 12, seed=1):
        metrics.write(line)
        tracker.log(line)
    metrics.close()
    tracker.close()
    assert in_tensorboard(run) == in_metrics(run)


def test_a_tensorboard_that_looks_on_forgets_what_was_done_again(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(run, 1, 10)
    looking = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    trained(run, 7, 14, seed=1)
    looking.Reload()
    assert [(event.step, event.value) for event in looking.Scalars("train/loss")] == in_metrics(run)["train/loss"]


def test_a_finding_is_shown_as_text_at_its_step(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tracked(["tensorboard"], run.path, config=CONFIG) as log:
        for line in lines(1, 4):
            log(line)
        log({**FINDING, "kind": "finding"})
    read = EventAccumulator(str(run.path / "tensorboard")).Reload()
    (event,) = read.Tensors("findings")
    assert (event.step, list(event.tensor_proto.string_val)) == (4, [FINDING["sentence"].encode()])  # type: ignore[attr-defined]
    assert read.SummaryMetadata("findings").plugin_data.plugin_name == "text"


def test_a_corpus_is_named_by_its_path_without_an_empty_group() -> None:
    record = {"kind": "heldout", "step": 3, "tokens": 9, "loss_nats": 1.5, "corpus": "/data/nano"}
    assert scalars(record) == {"heldout/loss_nats/data/nano": 1.5}


def test_no_file_names_the_machine(run: Run) -> None:
    trained(run, 1, 3)
    for path in (run.path / "tensorboard").iterdir():
        assert socket.gethostname() not in path.name
        assert socket.gethostname().encode() not in path.read_bytes()


def test_nothing_is_opened_before_there_is_a_record_and_nothing_without_a_name(run: Run) -> None:
    with tracked(["tensorboard"], run.path, config=CONFIG):
        assert not (run.path / "tensorboard").exists()
    with tracked([], run.path, config=CONFIG) as log:
        for line in lines(1, 3):
            log(line)
    assert not (run.path / "tensorboard").exists()


def test_what_is_no_tracker_or_not_installed_is_refused_before_training(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(RecipeError, match=r'--track tensorbord: no such tracker; did you mean "tensorboard"\?'),
        tracked(["tensorbord"], run.path, config=CONFIG),
    ):
        pass
    monkeypatch.setattr(trackers, "TRACKERS", {"tensorboard": "a_package_that_nobody_has"})
    with (
        pytest.raises(RecipeError, match=r"a_package_that_nobody_has is not installed.*predistill\[track\]"),
        tracked(["tensorboard"], run.path, config=CONFIG),
    ):
        pass


def test_a_tracker_that_fails_is_left_out_and_training_goes_on(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with tracked(["tensorboard"], run.path, config=CONFIG) as log:
        log({"kind": "step", "step": 1, "tokens": 512, "loss": 1.0})
        log({"kind": "step", "step": "not a number"})
        log({"kind": "step", "step": 3, "tokens": 1536, "loss": 1.0})
    err = capsys.readouterr().err
    assert err.startswith(f"{run.path}: TensorBoard failed and is left out from here (")
    assert len(err.splitlines()) == 1


@pytest.fixture
def in_trackio(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """trackio with a data base of its own."""
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("the package trackio is not installed: pip install 'predistill[track]'")
    import trackio.utils
    from trackio import sqlite_storage

    for module in (trackio.utils, sqlite_storage, trackio):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")

    def curves() -> dict[str, list[tuple[int, float]]]:
        found: dict[str, list[tuple[int, float]]] = {}
        for line in sqlite_storage.SQLiteStorage.get_logs("predistill", str(run.path)):
            for key, value in line.items():
                if key not in ("step", "timestamp", "log_id") and not key.startswith("_"):
                    found.setdefault(key, []).append((line["step"], value))
        return found

    return curves


def exact(run: Run) -> dict[str, list[tuple[int, float]]]:
    """The curves of metrics.jsonl, to the last digit."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in run.metrics():
        for tag, value in scalars(line).items():
            found.setdefault(tag, []).append((line["step"], value))
    return found


@pytest.mark.filterwarnings("default")
def test_trackio_has_every_value_and_after_a_resume_every_step_once(run: Run, in_trackio: Any) -> None:
    trained(run, 1, 10, names=("trackio",))
    trained(run, 7, 14, names=("trackio",), seed=1)
    assert in_trackio() == exact(run)


@pytest.mark.filterwarnings("default")
def test_wandb_has_every_value_and_keeps_its_id(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("the package wandb is not installed: pip install 'predistill[track]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    seen: list[tuple[int, Mapping[str, Any]]] = []
    import wandb

    log = wandb.Run.log
    monkeypatch.setattr(
        wandb.Run, "log", lambda self, data, step=None: (seen.append((step, data)), log(self, data, step=step))[1]
    )
    trained(run, 1, 10, names=("wandb",))
    kept = (run.path / "wandb.id").read_text(encoding="utf-8")
    assert seen == [(line["step"], scalars(line)) for line in run.metrics()]
    assert len(list((run.path / "wandb").glob(f"offline-run-*-{kept}/*.wandb"))) == 1
    trained(run, 7, 8, names=("wandb",), seed=1)
    assert (run.path / "wandb.id").read_text(encoding="utf-8") == kept
