"""Training: stopping, dying and going on change nothing, nor does a teacher at alpha 0; misfits are refused."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from predistill.corpus import Corpus
from predistill.errors import PredistillError, RecipeError, RunError, StoreError
from predistill.recipe import read_recipe
from predistill.runs import Run
from predistill.stages.inputs import open_inputs
from predistill.stages.train import train
from predistill.store import Store
from tests.made import BATCH_ROWS, ROW_LEN, STEPS, files_below, recipe_content, timeless, weights
from tests.processes import COMMAND, Forks, kill_then_finish, lines_of


def written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_run_learns_and_keeps_every_step(lm_run: Run) -> None:
    steps = [line for line in lm_run.metrics() if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert [line["tokens"] for line in steps] == [step * BATCH_ROWS * ROW_LEN for step in range(1, STEPS + 1)]
    assert steps[-1]["lm"] < steps[0]["lm"] - 0.5
    heldout = [line for line in lm_run.metrics() if line["kind"] == "heldout"]
    assert [line["step"] for line in heldout] == [15, 30, 40]
    assert heldout[-1]["loss_nats"] < heldout[0]["loss_nats"]


def test_a_taught_run_has_all_three_measures_at_every_step(pd_run: Run) -> None:
    steps = [line for line in pd_run.metrics() if line["kind"] == "step"]
    assert len(steps) == STEPS
    for line in steps:
        assert line["loss"] == pytest.approx((1 - line["alpha"]) * line["lm"] + line["alpha"] * line["kd"], rel=1e-6)
        assert line["kl"] == pytest.approx(line["kd"], rel=1e-4)  # kld at temperature 1 is that KL
    assert steps[-1]["kl"] < steps[0]["kl"] - 0.5


def test_the_same_recipe_gives_the_same_bits(pd_run: Run, tmp_path: Path) -> None:
    again = train(read_recipe(pd_run.recipe), out=tmp_path / "again")
    assert timeless(again) == timeless(pd_run)
    assert weights(again) == weights(pd_run)


def test_another_seed_gives_another_run(pd_run: Run, tmp_path: Path) -> None:
    other = train(read_recipe(pd_run.recipe, ["seed=1"]), out=tmp_path / "other")
    assert timeless(other)[0]["loss"] != timeless(pd_run)[0]["loss"]


def test_stopped_by_sigterm_it_exits_3_and_going_on_equals_never_stopping(
    pd_run: Run, forks: Forks, tmp_path: Path
) -> None:
    recipe, out = written(tmp_path, pd_run.recipe), tmp_path / "run"
    command = [*COMMAND, "train", str(recipe), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while lines_of(out / "metrics.jsonl") < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        _, words = process.communicate(timeout=120)
    assert process.returncode == 3, words
    stopped = Run(out)
    assert stopped.done is None
    at = stopped.metrics()[-1]["step"]
    assert 3 <= at < STEPS
    assert f"stopped at step {at} of {STEPS}, saved" in words.replace("\n", " ")
    assert (out / "checkpoints" / f"step-{at:08d}").is_dir()

    assert forks.run("train", recipe, "--out", out, log=tmp_path / "log") == 0
    assert timeless(stopped) == timeless(pd_run)
    assert weights(stopped) == weights(pd_run)


def test_killed_twice_at_random_moments_it_ends_as_if_never_killed(pd_run: Run, forks: Forks, tmp_path: Path) -> None:
    recipe, moments = written(tmp_path, pd_run.recipe), random.Random()
    for attempt in range(5):
        out = tmp_path / f"run{attempt}"
        kills = kill_then_finish(
            forks,
            ("train", recipe, "--out", out),
            log=tmp_path / "log",
            progress=lambda out=out: lines_of(out / "metrics.jsonl"),  # type: ignore[misc]
            total=len(pd_run.metrics()),
            times=2,
            moments=moments,
        )
        assert timeless(Run(out)) == timeless(pd_run), kills
        assert weights(Run(out)) == weights(pd_run), kills
        if len(kills) == 2:
            return
    pytest.fail("no attempt was killed twice before it ended")


@pytest.mark.parametrize("readers", [1, 2])
def test_reading_ahead_changes_no_bit_and_says_what_was_waited_for(pd_run: Run, readers: int, tmp_path: Path) -> None:
    run = train(read_recipe(pd_run.recipe | {"readers": readers}), out=tmp_path / "run")
    assert timeless(run) == timeless(pd_run)
    assert weights(run) == weights(pd_run)
    waits = [line["stall_s"] for line in run.metrics() if line["kind"] == "step"]
    assert run.done is not None
    assert run.done["stall_seconds"] == pytest.approx(sum(waits))
    assert 0 < run.done["stall_share"] < 1


def test_reading_ahead_goes_on_after_a_stop_and_leaves_no_process(pd_run: Run, tmp_path: Path) -> None:
    recipe = read_recipe(pd_run.recipe | {"readers": 2})

    def die_at_20(record: Any) -> None:
        if record["kind"] == "step" and record["step"] == 20:
            raise ZeroDivisionError

    before = children()
    with pytest.raises(ZeroDivisionError):
        train(recipe, out=tmp_path / "run", on_record=die_at_20)
    assert children() == before
    resumed = train(recipe, out=tmp_path / "run")
    assert children() == before
    assert timeless(resumed) == timeless(pd_run)
    assert weights(resumed) == weights(pd_run)


def test_stopped_by_a_signal_to_the_whole_group_it_saves_and_its_readers_end(pd_run: Run, tmp_path: Path) -> None:
    recipe, out = written(tmp_path, pd_run.recipe | {"readers": 2}), tmp_path / "run"
    command = [*COMMAND, "train", str(recipe), "--out", str(out)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 120
        while lines_of(out / "metrics.jsonl") < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(children(process.pid)) == 2
        os.killpg(process.pid, signal.SIGTERM)
        _, words = process.communicate(timeout=120)
    assert process.returncode == 3, words
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def children(pid: int | None = None) -> set[int]:
    """The processes that a process has started and that still run."""
    return {child.pid for child in psutil.Process(pid).children()}


def test_alpha_0_equals_the_lm_run_exactly_though_a_store_is_read(
    lm_run: Run, corpus: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    rows = Store.rows

    def counted(self: Store, indices: Any, *args: Any, **more: Any) -> Any:
        read.extend(int(i) for i in indices)
        return rows(self, indices, *args, **more)

    monkeypatch.setattr(Store, "rows", counted)
    content = recipe_content(corpus, store, alpha={"kind": "constant", "value": 0.0})
    run = train(read_recipe(content), out=tmp_path / "run")
    assert len(read) == STEPS * BATCH_ROWS
    assert timeless(run) == timeless(lm_run)
    assert weights(run) == weights(lm_run)


def test_a_teacher_changes_the_run(lm_run: Run, pd_run: Run) -> None:
    assert weights(pd_run) != weights(lm_run)


def test_the_micro_batch_changes_the_first_loss_by_rounding_only(pd_run: Run, tmp_path: Path) -> None:
    content = pd_run.recipe | {"tokens": BATCH_ROWS * ROW_LEN}
    first = [
        train(read_recipe(content | {"micro_batch_rows": rows}), out=tmp_path / str(rows)).metrics()[0]
        for rows in (1, 3, 8)
    ]
    for line in first[1:]:
        for key in ("loss", "lm", "kd", "kl", "grad_norm"):
            assert line[key] == pytest.approx(first[0][key], rel=1e-5), key


def test_a_finished_run_is_left_alone(pd_run: Run) -> None:
    before = files_below(pd_run.path)
    stamps = {
        path: path.stat().st_mtime_ns for path in pd_run.path.rglob("*") if path.name in ("metrics.jsonl", "DONE")
    }
    seen: list[Any] = []
    train(read_recipe(pd_run.recipe), out=pd_run.path, on_record=seen.append)
    after = files_below(pd_run.path)
    assert not seen
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert after == before


def test_a_run_that_another_process_trains_is_refused_and_untouched(pd_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    refusals: list[str] = []

    def start_another(record: Any) -> None:
        if record["kind"] == "step" and record["step"] == 20:
            for overwrite in (False, True):
                with pytest.raises(RunError) as refused:
                    train(read_recipe(pd_run.recipe), out=out, overwrite=overwrite)
                refusals.append(str(refused.value))

    run = train(read_recipe(pd_run.recipe), out=out, on_record=start_another)
    assert refusals == [f"{out}: another process trains here. Wait for it or stop it, or name another --out."] * 2
    assert timeless(run) == timeless(pd_run)
    assert weights(run) == weights(pd_run)
    assert not (out / "train.lock").exists()


def test_a_run_of_another_recipe_is_refused_and_untouched(pd_run: Run) -> None:
    before = files_below(pd_run.path)
    with pytest.raises(RunError, match=r"other recipe: seed was 0, now 5.*--overwrite"):
        train(read_recipe(pd_run.recipe, ["seed=5"]), out=pd_run.path)
    assert files_below(pd_run.path) == before


def test_how_a_run_is_run_may_change_and_nothing_of_what_it_learns(pd_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def die_at_20(record: Any) -> None:
        if record["kind"] == "step" and record["step"] == 20:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(read_recipe(pd_run.recipe), out=out, on_record=die_at_20)
    run = train(read_recipe(pd_run.recipe, ["readers=1", "keep=3", "checkpoint_every=11", "keep_every=22"]), out=out)
    assert timeless(run) == timeless(pd_run)
    assert weights(run) == weights(pd_run)
    assert run.recipe["keep"] == 3
    assert run.environment["changes"][0]["from"] == {
        "readers": 0, "checkpoint_every": 7, "keep": 2, "keep_every": None
    }  # fmt: skip


def test_forced_a_run_goes_on_with_another_recipe_and_says_so(pd_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def die_at_20(record: Any) -> None:
        if record["kind"] == "step" and record["step"] == 20:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(read_recipe(pd_run.recipe), out=out, on_record=die_at_20)
    changed = read_recipe(pd_run.recipe, ["alpha.peak=0.5"])
    with pytest.raises(RunError, match=r"other recipe: alpha was .*or go on all the same with --force-resume"):
        train(changed, out=out)
    run = train(changed, out=out, force=True)
    ours, theirs = ([line for line in each.metrics() if line["kind"] == "step"] for each in (run, pd_run))
    assert ours[13]["loss"] == theirs[13]["loss"]
    assert (ours[14]["alpha"], theirs[14]["alpha"]) == (0.5, 0.9)
    assert [change["what"] for change in run.environment["changes"]] == ["recipe"]


def test_a_run_goes_on_past_a_damaged_newest_checkpoint(
    pd_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(pd_run.path, out)
    (out / "DONE").unlink()
    checkpoints = sorted((out / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    state = checkpoints[-1] / "__0_0.distcp"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    shutil.rmtree(out / "model")
    resumed = train(read_recipe(pd_run.recipe), out=out)
    said = capsys.readouterr()
    assert f"{checkpoints[-1]}: passed over" in said.err.replace("\n", "")
    assert said.out == "", "stdout belongs to --json"
    assert timeless(resumed) == timeless(pd_run)
    assert weights(resumed) == weights(pd_run)


def test_an_interrupt_between_metrics_and_checkpoint_writes_no_step_twice(pd_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def die_at_20(record: Any) -> None:
        if record["kind"] == "step" and record["step"] == 20:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(read_recipe(pd_run.recipe), out=out, on_record=die_at_20)
    assert Run(out).metrics()[-1]["step"] == 20
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000007", "step-00000014"]
    with (out / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "step", "st')  # a torn line, as a power cut leaves it
    resumed = train(read_recipe(pd_run.recipe), out=out)
    assert timeless(resumed) == timeless(pd_run)
    assert weights(resumed) == weights(pd_run)


def test_a_store_of_another_corpus_is_refused_and_nothing_is_written(
    sample_text: Path, store: Path, corpus: Path, tmp_path: Path
) -> None:
    from predistill.stages.prepare import prepare

    other = tmp_path / "other"
    prepare(sample_text, out=other, tokenizer=corpus, row_len=ROW_LEN, held_out=0.15, seed=1, processes=1)
    assert Corpus(other).fingerprint != Corpus(corpus).fingerprint
    refused(recipe_content(other, store), tmp_path, StoreError, f"{store}: was captured over another corpus", "capture")


def test_a_store_of_another_document_mask_is_refused_and_nothing_is_written(
    masked_corpus: Path, store: Path, tmp_path: Path
) -> None:
    refused(recipe_content(masked_corpus, store), tmp_path, StoreError, f"{store}: was captured over", "capture")


def test_a_wider_truncation_than_stored_is_refused_and_nothing_is_written(
    corpus: Path, store: Path, tmp_path: Path
) -> None:
    content = recipe_content(corpus, store, truncation={"kind": "top_k", "k": 50})
    refused(content, tmp_path, RecipeError, "not wider", "capture again")


def test_a_narrower_truncation_than_stored_is_trained_on(corpus: Path, store: Path, tmp_path: Path) -> None:
    content = recipe_content(corpus, store, truncation={"kind": "top_p_k", "p": 0.9, "k": 10}, tokens=512)
    assert train(read_recipe(content), out=tmp_path / "run").metrics()[0]["kd"] > 0


def test_a_damaged_store_ends_the_run_in_a_sentence_that_names_the_row(
    corpus: Path, store: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    shard = next((copy / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    for place in range(100, len(data) // 2, 500):
        data[place] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=r"row [\d,]+ .*damaged"):
        train(read_recipe(recipe_content(corpus, copy)), out=tmp_path / "run")


def test_a_batch_that_is_not_whole_rows_is_refused_with_a_near_one(corpus: Path, tmp_path: Path) -> None:
    refused(recipe_content(corpus, batch_tokens=500), tmp_path, RecipeError, "not a multiple of the row length", "512")


def test_a_sampled_store_teaches(corpus: Path, lm_run: Run, tmp_path: Path) -> None:
    from predistill.objective import Sampled
    from predistill.stages.capture import capture

    capture(lm_run.path, corpus=corpus, out=tmp_path / "store", truncation=Sampled(draws=20))
    content = recipe_content(
        corpus,
        tmp_path / "store",
        truncation={"kind": "sampled", "draws": 20},
        tail={"kind": "as_sampled"},
        loss={"kind": "nll"},
    )
    steps = [line for line in train(read_recipe(content), out=tmp_path / "run").metrics() if line["kind"] == "step"]
    assert steps[-1]["kd"] < steps[0]["kd"] - 0.5


def test_a_student_starts_from_a_finished_run(lm_run: Run, corpus: Path, tmp_path: Path) -> None:
    content = recipe_content(corpus, student={"preset": "nano-xs", "from": str(lm_run.path)}, tokens=512)
    first = train(read_recipe(content), out=tmp_path / "run").metrics()[0]
    scratch = lm_run.metrics()[0]
    assert first["lm"] < scratch["lm"] - 0.5


def test_bf16_compute_leaves_the_weights_in_float32(corpus: Path, store: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    # One micro-batch of one row: bfloat16 is emulated on many CPUs.
    content = recipe_content(corpus, store, precision="bf16", tokens=ROW_LEN, batch_tokens=ROW_LEN, micro_batch_rows=1)
    run = train(read_recipe(content), out=tmp_path / "run")
    full = train(read_recipe(content | {"precision": "fp32"}), out=tmp_path / "full")
    assert run.metrics()[0]["loss"] == pytest.approx(full.metrics()[0]["loss"], rel=0.02)
    assert {tensor.dtype for tensor in load_file(run.model_path / "model.safetensors").values()} == {torch.float32}


def test_two_corpora_are_one_mixture(corpus: Path, store: Path, lm_run: Run, sample_text: Path, tmp_path: Path) -> None:
    from predistill.objective import TopPK
    from predistill.stages.capture import capture
    from predistill.stages.prepare import prepare

    other, other_store = tmp_path / "corpus", tmp_path / "store"
    lines = sample_text.read_text(encoding="utf-8").splitlines(keepends=True)
    text = tmp_path / "part.jsonl"
    text.write_text("".join(lines[: len(lines) // 4]), encoding="utf-8")
    prepare(text, out=other, tokenizer=corpus, row_len=ROW_LEN, held_out=0.0, processes=1)
    capture(lm_run.path, corpus=other, out=other_store, truncation=TopPK(p=0.95, k=100))
    entries = [
        {"path": str(corpus), "store": str(store), "weight": 3.0},
        {"path": str(other), "store": str(other_store), "weight": 1.0},
    ]
    run = train(read_recipe(recipe_content(corpus, store, corpus=entries, tokens=2048)), out=tmp_path / "run")
    assert len(run.environment["inputs"]["store"]) == 2
    assert run.done is not None


def refused(content: dict[str, Any], folder: Path, kind: type[PredistillError], *words: str) -> None:
    """Training refuses it in a sentence that holds `words`, and writes nothing."""
    with pytest.raises(kind) as caught:
        train(read_recipe(content), out=folder / "refused")
    for word in words:
        assert word in str(caught.value)
    assert not (folder / "refused").exists()


@pytest.mark.parametrize(
    "parts",
    [
        {"temperature": {"kind": "std"}},
        {"temperature": {"kind": "entropy", "strength": -1.0}},
        {"temperature": {"kind": "norm_kd"}, "positions": {"kind": "drop_low_teacher_entropy"}},
        {"loss": {"kind": "reverse_kld"}, "tail": {"kind": "uniform"}},
        {"loss": {"kind": "jsd"}, "tail": {"kind": "ghost"}, "positions": {"kind": "top_student_entropy"}},
        {"tail": {"kind": "decoupled"}},
    ],
    ids=lambda parts: "-".join(part["kind"] for part in parts.values()),
)
def test_every_axis_trains_from_a_store(parts: dict[str, Any], corpus: Path, store: Path, tmp_path: Path) -> None:
    few = {"tokens": 3 * BATCH_ROWS * ROW_LEN, "alpha": {"kind": "constant", "value": 0.9}, "evaluate_every": None}
    run = train(read_recipe(recipe_content(corpus, store, **few, **parts)), out=tmp_path / "run")
    steps = [line for line in run.metrics() if line["kind"] == "step"]
    assert len(steps) == 3
    assert all(line["kd"] > 0 and line["kl"] > 0 for line in steps)


def test_a_scaled_temperature_refers_to_the_mean_of_the_store(corpus: Path, store: Path) -> None:
    recipe = read_recipe(recipe_content(corpus, store, temperature={"kind": "std"}))
    mean = Store(store).manifest["self_test"]["mean_logit_std"]
    assert open_inputs(recipe).objective(recipe).temperature.reference == pytest.approx(mean)  # type: ignore[union-attr]
    told = read_recipe(recipe_content(corpus, store, temperature={"kind": "std", "reference": 2.5}))
    assert open_inputs(told).objective(told).temperature.reference == 2.5  # type: ignore[union-attr]


def test_a_tempered_tail_that_the_store_cannot_give_is_refused_and_nothing_is_written(
    corpus: Path, store: Path, tmp_path: Path
) -> None:
    content = recipe_content(corpus, store, tail={"kind": "ghost"}, temperature={"kind": "static", "value": 2.0})
    with pytest.raises(RecipeError, match=r"ghost at temperature 2 .* \(these have none\): use tail renormalise"):
        train(read_recipe(content), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
