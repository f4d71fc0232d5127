"""A run that logs its own targets: what the student knew at the time, durable with its checkpoints, fit to teach."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from predistill.corpus import Corpus, mixture_rows
from predistill.errors import PredistillError, RecipeError, Stopped, StoreError
from predistill.objective import SparseTargets, TopPK
from predistill.recipe import Recipe, read_recipe
from predistill.runs import Run
from predistill.stages import train as train_module
from predistill.stages.evaluate import evaluate
from predistill.stages.inputs import open_inputs
from predistill.stages.train import train
from predistill.store import Store
from predistill.store import writer as writer_module
from predistill.students.build import build_student
from predistill.teachers.live import LiveTeacher
from predistill.teachers.stored import StoredTeacher
from predistill.training.checkpoint import Checkpoints
from predistill.training.optim import adamw
from tests.made import ALONE, BATCH_ROWS, ROW_LEN, STEPS, files_below, in_training, recipe_content, timeless, weights

CPU = torch.device("cpu")
KEPT = TopPK(p=0.95, k=100)
CADENCE = 6  # of checkpoints: 6, 12, .. 36, 40
FROM = 30  # three quarters of 40 steps


def logging_to(out: Path, **more: Any) -> dict[str, Any]:
    return {"log_targets": {"out": str(out), **more}, "checkpoint_every": CADENCE}


def rows_of(corpus: Path, recipe: Recipe, steps: range) -> list[int]:
    """The corpus rows of these steps, in the order in which they are trained on."""
    rows = [
        mixture_rows(
            seed=recipe.seed, step=step, batch_rows=BATCH_ROWS, corpus_rows=[len(Corpus(corpus))], weights=[1.0]
        )[1]
        for step in steps
    ]
    return [int(row) for row in np.concatenate(rows)]


def stored(store: Path, corpus: Path, rows: np.ndarray) -> SparseTargets:
    return StoredTeacher(Store(store), truncation=KEPT, device=CPU).targets(rows, Corpus(corpus).rows(rows)[0])


def present(store: Path) -> np.ndarray:
    found = Store(store)
    return np.flatnonzero(found.has(np.arange(len(found))))


def same_rows(a: Path, b: Path) -> None:
    """Two stores hold the same rows, and each the same to the bit."""
    one, two = Store(a), Store(b)
    assert np.array_equal(present(a), present(b))
    for row in present(a):
        ours, theirs = one.rows([row]), two.rows([row])
        for name in ("ids_E", "logprob_E", "log_rest_N", "length_N", "label_logprob_N", "entropy_N", "logit_std_N"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), (row, name)
    assert one.manifest["self_test"] == two.manifest["self_test"]
    assert one.permutation.tolist() == two.permutation.tolist()


@pytest.fixture(scope="module")
def logged(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A run on text alone, never stopped, that logged the last quarter of its steps."""
    folder = tmp_path_factory.mktemp("logged")
    content = recipe_content(corpus, **logging_to(folder / "store"))
    return train(read_recipe(content), out=folder / "run"), folder / "store"


def test_the_store_holds_the_rows_of_the_slice_and_no_other(corpus: Path, logged: tuple[Run, Path]) -> None:
    run, out = logged
    expected = sorted(set(rows_of(corpus, read_recipe(run.recipe), range(FROM, STEPS))))
    store = Store(out)
    assert present(out).tolist() == expected
    assert len(store) == len(Corpus(corpus))
    assert store.totals["rows"] == len(expected) == (STEPS - FROM) * BATCH_ROWS
    store.verify()


def test_logging_changes_nothing_of_the_run(lm_run: Run, logged: tuple[Run, Path]) -> None:
    assert timeless(logged[0]) == timeless(lm_run)
    assert weights(logged[0]) == weights(lm_run)


def test_the_targets_are_those_of_the_student_before_the_step_s_update(
    corpus: Path, logged: tuple[Run, Path], tmp_path: Path
) -> None:
    run, out = logged
    recipe, source = read_recipe(run.recipe), Corpus(corpus)
    until = tmp_path / "until"  # the student as it was when step 30 began
    content = {**run.recipe, "log_targets": None, "checkpoint_every": FROM, "keep": 9}
    train(read_recipe(content), out=until)
    model = build_student(open_inputs(recipe).config, seed=0, device=CPU)
    path = until / "checkpoints" / f"step-{FROM:08d}"
    optimizer = adamw(model, betas=(0.9, 0.95), weight_decay=0.1)
    Checkpoints(path.parent, ALONE, keep=1).load(path, in_training(model), optimizer)
    rows = np.array(rows_of(corpus, recipe, range(FROM, FROM + 1)))
    teacher = LiveTeacher(model.eval(), truncation=KEPT, vocab_size=source.vocab_size)
    wanted, found = teacher.targets(rows, source.rows(rows)[0]), stored(out, corpus, rows)
    assert wanted.logprob_NK is not None
    assert found.logprob_NK is not None
    assert wanted.log_rest_N is not None
    assert found.log_rest_N is not None
    dense = [torch.zeros(len(rows) * ROW_LEN, source.vocab_size) for _ in range(2)]
    for table, targets in zip(dense, (wanted, found), strict=True):
        kept_NK = targets.columns_NK >= 0
        table.scatter_add_(1, targets.columns_NK.clamp(min=0), targets.logprob_NK.exp().masked_fill(~kept_NK, 0.0))
    assert float((dense[0] - dense[1]).abs().max()) < 0.01, "the grid is a 64th of a nat"
    assert float((dense[0] - dense[1]).abs().sum(dim=1).mean()) < 0.01
    assert torch.allclose(wanted.log_rest_N.exp(), found.log_rest_N.exp(), atol=5e-3)
    after = rows_of(corpus, recipe, range(FROM + 5, FROM + 6))
    later = stored(out, corpus, np.array(after))
    stale = teacher.targets(np.array(after), source.rows(after)[0])
    assert not torch.allclose(later.log_rest_N.exp(), stale.log_rest_N.exp(), atol=5e-3)  # type: ignore[union-attr]


def test_the_facts_are_those_of_a_capture_but_for_the_run(store: Path, logged: tuple[Run, Path]) -> None:
    run, out = logged
    ours, captured = Store(out).manifest, Store(store).manifest
    for key in ("tokenizer", "corpus", "truncation", "grids", "kind", "streams", "row_len"):
        assert ours[key] == captured[key], key
    assert ours["teacher"]["name"] == run.name
    assert ours["teacher"]["sha256"] == []
    assert ours["teacher"]["logged"]["from_frac"] == 0.75
    assert ours["self_test"].keys() <= captured["self_test"].keys()
    assert ours["self_test"]["sample_rows"] == (STEPS - FROM) * BATCH_ROWS
    losses = [line["lm"] for line in run.metrics() if line["kind"] == "step" and line["step"] > FROM]
    assert ours["self_test"]["teacher_loss_nats"] == pytest.approx(np.mean(losses), rel=1e-4)


def interrupted_at(step: int) -> Callable[[Any], None]:
    def die(record: Any) -> None:
        if record["kind"] == "step" and record["step"] == step:
            raise ZeroDivisionError

    return die


@pytest.mark.parametrize("deaths", [[31], [33, 35], [37, 40, 38], [12, 39]])
def test_a_run_that_died_and_went_on_logs_what_one_that_was_never_stopped_logs(
    deaths: list[int], logged: tuple[Run, Path], tmp_path: Path
) -> None:
    content = logged[0].recipe | logging_to(tmp_path / "store")
    for step in deaths:
        with pytest.raises(ZeroDivisionError):
            train(read_recipe(content), out=tmp_path / "run", on_record=interrupted_at(step))
    run = train(read_recipe(content), out=tmp_path / "run")
    assert timeless(run) == timeless(logged[0])
    same_rows(tmp_path / "store", logged[1])


def test_a_run_that_was_stopped_on_request_logs_the_same(logged: tuple[Run, Path], tmp_path: Path) -> None:
    def stop(record: Any) -> None:
        if record["kind"] == "step" and record["step"] == 34:
            os.kill(os.getpid(), signal.SIGTERM)

    content = logged[0].recipe | logging_to(tmp_path / "store")
    with pytest.raises(Stopped):
        train(read_recipe(content), out=tmp_path / "run", on_record=stop)
    train(read_recipe(content), out=tmp_path / "run")
    same_rows(tmp_path / "store", logged[1])


@pytest.mark.parametrize("where", ["seal_store", "DONE"])
def test_a_run_that_died_while_it_finished_has_the_same_store(
    where: str, logged: tuple[Run, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = logged[0].recipe | logging_to(tmp_path / "store")

    def die(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        if where == "seal_store":
            patch.setattr(writer_module, "seal_store", die)
        else:
            patch.setattr(train_module, "export_student", die)
        with pytest.raises(ZeroDivisionError):
            train(read_recipe(content), out=tmp_path / "run")
    assert (tmp_path / "store" / "manifest.json").exists() == (where == "DONE")
    run = train(read_recipe(content), out=tmp_path / "run")
    assert run.done is not None
    same_rows(tmp_path / "store", logged[1])


def test_a_run_begun_anew_writes_its_store_anew(logged: tuple[Run, Path], tmp_path: Path) -> None:
    content = logged[0].recipe | logging_to(tmp_path / "store")
    with pytest.raises(ZeroDivisionError):
        train(read_recipe(content), out=tmp_path / "run", on_record=interrupted_at(38))
    shutil.rmtree(tmp_path / "run")
    train(read_recipe(content), out=tmp_path / "run")
    same_rows(tmp_path / "store", logged[1])


def test_of_a_row_seen_twice_the_first_time_is_kept(corpus: Path, tmp_path: Path) -> None:
    source = Corpus(corpus)
    steps = len(source) // BATCH_ROWS + 12  # a second epoch begins
    content = recipe_content(
        corpus,
        **logging_to(tmp_path / "store", from_frac=0.0),
        tokens=steps * BATCH_ROWS * ROW_LEN,
        evaluate_every=None,
    )
    recipe = read_recipe(content)
    train(recipe, out=tmp_path / "run")
    seen = rows_of(corpus, recipe, range(steps))
    assert len(set(seen)) < len(seen)
    assert present(tmp_path / "store").tolist() == sorted(set(seen))
    twice = [row for row in dict.fromkeys(seen) if seen.count(row) > 1 and row in seen[: BATCH_ROWS * 3]]
    assert twice
    fresh = build_student(open_inputs(recipe).config, seed=0, device=CPU)
    entropy = float(np.log(source.vocab_size))  # of a student that knows nothing
    first = np.array(seen[:BATCH_ROWS])
    wanted = LiveTeacher(fresh.eval(), truncation=KEPT, vocab_size=source.vocab_size).targets(
        first, source.rows(first)[0]
    )
    found = Store(tmp_path / "store").rows(first).entropy_N
    assert found is not None
    assert wanted.entropy_N is not None
    assert np.allclose(found, wanted.entropy_N.numpy(), atol=5e-3)
    assert float(found.mean()) > entropy - 0.1


def test_no_more_rows_are_logged_than_asked_for(corpus: Path, logged: tuple[Run, Path], tmp_path: Path) -> None:
    content = recipe_content(corpus, **logging_to(tmp_path / "store", from_frac=0.5, to_frac=0.9, rows=45))
    recipe = read_recipe(content)
    with pytest.raises(ZeroDivisionError):
        train(recipe, out=tmp_path / "run", on_record=interrupted_at(24))
    train(recipe, out=tmp_path / "run")
    assert present(tmp_path / "store").tolist() == sorted(rows_of(corpus, recipe, range(20, 40))[:45])
    assert logged[0].recipe["log_targets"]["rows"] is None


def test_a_run_learns_from_the_rows_that_another_logged(
    corpus: Path, logged: tuple[Run, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[int] = []
    original = train_module.train_step

    def step(*given: Any, **choices: Any) -> Any:
        result = original(*given, **choices)
        taught.append(result.kd_count)
        return result

    monkeypatch.setattr(train_module, "train_step", step)
    recipe = read_recipe(recipe_content(corpus, logged[1], checkpoint_every=None))
    run = train(recipe, out=tmp_path / "run")
    there = set(present(logged[1]).tolist())
    for at, count in enumerate(taught):
        rows = rows_of(corpus, recipe, range(at, at + 1))
        assert count == ROW_LEN * sum(row in there for row in rows), at
    assert 0 < sum(taught) < STEPS * BATCH_ROWS * ROW_LEN
    for line in run.metrics():
        if line["kind"] == "step":
            assert np.isfinite(line["loss"])
            assert (line["kd"] is None) == (taught[line["step"] - 1] == 0)
    assert run.environment["inputs"]["store"][0]["manifest"]["teacher"]["name"] == logged[0].name
    for path in (logged[0].path, run.path):
        shutil.copytree(path, tmp_path / "copies" / path.parent.name)
        record = evaluate(tmp_path / "copies" / path.parent.name, teacher=logged[0].path, limit=8)
        assert 0 < record["heldout"]["loss_nats"] < 9


def test_a_scaled_temperature_refers_to_the_mean_of_what_was_logged(corpus: Path, logged: tuple[Run, Path]) -> None:
    recipe = read_recipe(recipe_content(corpus, logged[1], temperature={"kind": "entropy"}))
    mean = Store(logged[1]).manifest["self_test"]["mean_entropy_nats"]
    assert open_inputs(recipe).objective(recipe).temperature.reference == pytest.approx(mean)  # type: ignore[union-attr]


def test_draws_are_logged_as_well(corpus: Path, tmp_path: Path) -> None:
    content = recipe_content(corpus, **logging_to(tmp_path / "store", truncation={"kind": "sampled", "draws": 12}))
    train(read_recipe(content), out=tmp_path / "run")
    found = Store(tmp_path / "store").rows(present(tmp_path / "store")[:3])
    assert found.count_E is not None
    assert int(found.count_E.sum()) == 12 * 3 * ROW_LEN


def test_a_run_in_bf16_logs_too(corpus: Path, tmp_path: Path) -> None:
    one = {"tokens": ROW_LEN, "batch_tokens": ROW_LEN, "micro_batch_rows": 1, "precision": "bf16"}
    content = recipe_content(corpus, **logging_to(tmp_path / "store", from_frac=0.0), **one)
    run = train(read_recipe(content), out=tmp_path / "run")
    assert Store(tmp_path / "store").manifest["self_test"]["teacher_loss_nats"] == pytest.approx(
        run.metrics()[0]["lm"], rel=1e-3
    )


def refused(content: dict[str, Any], folder: Path, kind: type[PredistillError], *words: str) -> None:
    with pytest.raises(kind) as caught:
        train(read_recipe(content), out=folder)
    for word in words:
        assert word in str(caught.value)


def test_a_store_that_is_another_s_is_refused_and_untouched(
    corpus: Path, store: Path, logged: tuple[Run, Path], tmp_path: Path
) -> None:
    for i, out in enumerate((store, logged[1])):
        before = files_below(out)
        content = recipe_content(corpus, seed=7, **logging_to(out))
        refused(content, tmp_path / str(i), StoreError, str(out), "complete", "Name another log_targets.out")
        assert files_below(out) == before


def test_a_half_made_store_of_another_run_is_refused(corpus: Path, tmp_path: Path) -> None:
    content = recipe_content(corpus, **logging_to(tmp_path / "store"))
    with pytest.raises(ZeroDivisionError):
        train(read_recipe(content), out=tmp_path / "run", on_record=interrupted_at(38))
    refused(content | {"seed": 7}, tmp_path / "other", StoreError, "it was begun with", "teacher.logged.recipe")


def test_a_store_that_lost_what_the_checkpoint_counts_is_refused(corpus: Path, tmp_path: Path) -> None:
    content = recipe_content(corpus, **logging_to(tmp_path / "store"))
    with pytest.raises(ZeroDivisionError):
        train(read_recipe(content), out=tmp_path / "run", on_record=interrupted_at(38))
    shutil.rmtree(tmp_path / "store")
    refused(content, tmp_path / "run", StoreError, "holds 0 of the 48 rows", "--overwrite")


def test_a_mixture_does_not_log(corpus: Path, tmp_path: Path) -> None:
    entries = [{"path": str(corpus)}, {"path": str(corpus)}]
    content = recipe_content(corpus, **logging_to(tmp_path / "store"), corpus=entries)
    refused(content, tmp_path / "run", RecipeError, "log_targets", "this recipe mixes 2")
