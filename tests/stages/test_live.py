"""A live teacher in training: what a store would have given, and what no store can; resumed, refused, recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from predistill.assets import teacher_path
from predistill.corpus import Corpus
from predistill.errors import PredistillError, RecipeError, RunError, TeacherError
from predistill.objective import Sampled
from predistill.recipe import read_recipe
from predistill.runs import Run
from predistill.stages import train as train_module
from predistill.stages.capture import capture
from predistill.stages.evaluate import evaluate
from predistill.stages.inputs import open_inputs
from predistill.stages.prepare import prepare
from predistill.stages.report import report
from predistill.stages.teaching import tempered
from predistill.stages.train import train
from predistill.students import PRESETS
from predistill.teachers.live import LiveTeacher
from predistill.teachers.load import load_teacher
from predistill.teachers.stored import StoredTeacher
from tests.made import BATCH_ROWS, ROW_LEN, recipe_content, timeless, weights

CPU = torch.device("cpu")
LOSSES = ("loss", "lm", "kd", "kl")
FEW: dict[str, Any] = {
    "tokens": 3 * BATCH_ROWS * ROW_LEN, "alpha": {"kind": "constant", "value": 0.9}, "evaluate_every": None,
}  # fmt: skip


def live(model: Path, **more: Any) -> dict[str, Any]:
    return {"teacher": {"kind": "live", "model": str(model), **more}}


def steps_of(run: Run) -> list[dict[str, Any]]:
    return [line for line in run.metrics() if line["kind"] == "step"]


@pytest.fixture(scope="module")
def live_run(corpus: Path, lm_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run beside a live teacher, never stopped."""
    content = recipe_content(corpus, **live(lm_run.path))
    return train(read_recipe(content), out=tmp_path_factory.mktemp("runs") / "live")


def test_training_on_a_store_is_training_beside_the_teacher_up_to_the_grid(
    corpus: Path, store: Path, tmp_path: Path
) -> None:
    # At ten times this rate two runs that differ in the last bit are .05 nats apart after 40 steps.
    changes = {"lr": {"kind": "constant", "value": 1e-3}, "tokens": 30 * BATCH_ROWS * ROW_LEN, "checkpoint_every": None}
    content = recipe_content(corpus, store, **changes)
    stored = train(read_recipe(content), out=tmp_path / "stored")
    beside = train(read_recipe(content | live(teacher_path())), out=tmp_path / "live")
    for ours, theirs in zip(steps_of(stored), steps_of(beside), strict=True):
        for key in LOSSES:
            assert abs(ours[key] - theirs[key]) < 1e-3, (ours["step"], key)
    last = [[line["loss_nats"] for line in run.metrics() if line["kind"] == "heldout"][-1] for run in (stored, beside)]
    assert abs(last[0] - last[1]) < 2e-4


def test_a_live_teacher_draws_exactly_what_a_capture_draws(corpus: Path, lm_run: Run, tmp_path: Path) -> None:
    source, truncation = Corpus(corpus), Sampled(draws=20)
    sampled = capture(lm_run.path, corpus=corpus, out=tmp_path / "store", truncation=truncation)
    model = load_teacher(lm_run.path, vocab_size=source.vocab_size, device=CPU, dtype=torch.float32)
    beside = LiveTeacher(model, truncation=truncation, vocab_size=source.vocab_size)
    rows = np.arange(0, len(source), 5)
    ids, _ = source.rows(rows)
    # A store has its own order of the draws of a position; `unique` is by id.
    ours = beside.targets(rows, ids).unique()
    theirs = StoredTeacher(sampled, truncation=truncation, device=CPU).targets(rows, ids).unique()
    assert ours.weight_NK is not None
    assert theirs.weight_NK is not None
    assert torch.equal(ours.columns_NK, theirs.columns_NK)
    assert torch.equal(ours.weight_NK, theirs.weight_NK)
    content = recipe_content(
        corpus, tmp_path / "store", **FEW, truncation={"kind": "sampled", "draws": 20}, tail={"kind": "as_sampled"},
        loss={"kind": "nll"},
    )  # fmt: skip
    runs = [
        train(read_recipe(content | changes), out=tmp_path / name)
        for name, changes in (("stored", {}), ("live", live(lm_run.path)))
    ]
    for line, other in zip(steps_of(runs[0]), steps_of(runs[1]), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)


@pytest.mark.parametrize(
    "parts",
    [
        {"truncation": {"kind": "full"}},
        {"truncation": {"kind": "full"}, "tail": {"kind": "zero"}, "temperature": {"kind": "norm_kd"}},
        {"truncation": {"kind": "full"}, "tail": {"kind": "ghost"}, "temperature": {"kind": "std", "reference": 2.0}},
        {
            "truncation": {"kind": "top_k", "k": 5},
            "tail": {"kind": "ghost"},
            "temperature": {"kind": "static", "value": 2},
        },
        {"tail": {"kind": "to_label"}, "temperature": {"kind": "static", "value": 0.5, "sides": "both"}},
        {"tail": {"kind": "uniform"}, "temperature": {"kind": "static", "value": 2}, "loss": {"kind": "reverse_kld"}},
        {"tail": {"kind": "zero"}, "temperature": {"kind": "wttm", "value": 2}},
        {"temperature": {"kind": "entropy", "reference": 3.0}, "positions": {"kind": "drop_low_teacher_entropy"}},
        {"tail": {"kind": "decoupled"}, "positions": {"kind": "top_student_entropy"}},
        {"truncation": {"kind": "sampled", "draws": 9, "proposal_temperature": 2.0}, "tail": {"kind": "as_sampled"}},
    ],
    ids=lambda parts: "-".join(part["kind"] for part in parts.values()),
)
def test_every_axis_trains_beside_a_live_teacher(
    parts: dict[str, Any], corpus: Path, lm_run: Run, tmp_path: Path
) -> None:
    recipe = read_recipe(recipe_content(corpus, **FEW, **live(lm_run.path), **parts))
    steps = steps_of(train(recipe, out=tmp_path / "run"))
    assert len(steps) == 3
    assert all(np.isfinite(line["kd"]) and line["kd"] > 0 for line in steps)


def test_a_truncation_that_keeps_every_word_with_a_tempered_tail_is_no_truncation(
    corpus: Path, lm_run: Run, tmp_path: Path
) -> None:
    tempered_ghost = {"tail": {"kind": "ghost"}, "temperature": {"kind": "static", "value": 2.0}}
    kept = ({"kind": "full"}, {"kind": "top_k", "k": 2000}, {"kind": "top_k", "k": 5})
    kd = []
    for i, truncation in enumerate(kept):
        content = recipe_content(corpus, **FEW, **live(lm_run.path), **tempered_ghost, truncation=truncation)
        kd.append(steps_of(train(read_recipe(content), out=tmp_path / str(i)))[0]["kd"])
    assert kd[1] == pytest.approx(kd[0], rel=1e-3)  # 48 of 2,048 words are in the ghost
    assert kd[2] < kd[0], "joining words loses information"


def test_the_normaliser_is_asked_for_only_where_the_tail_needs_it(corpus: Path) -> None:
    def of(**parts: Any) -> float | None:
        return tempered(read_recipe(recipe_content(corpus, **live(Path("m")), **parts)))

    tau = {"kind": "static", "value": 2.0}
    assert of(tail={"kind": "ghost"}, temperature=tau) == 2.0
    assert of(tail={"kind": "ghost"}) is None
    assert of(tail={"kind": "renormalise"}, temperature=tau) is None
    assert of(tail={"kind": "ghost"}, temperature=tau, truncation={"kind": "full"}) is None


def test_one_model_serves_a_mixture_and_no_store_is_read(
    corpus: Path, lm_run: Run, sample_text: Path, tmp_path: Path
) -> None:
    lines = sample_text.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "part.jsonl").write_text("".join(lines[: len(lines) // 4]), encoding="utf-8")
    prepare(tmp_path / "part.jsonl", out=tmp_path / "c", tokenizer=corpus, row_len=ROW_LEN, held_out=0.0, processes=1)
    entries = [{"path": str(corpus), "store": "stores/not-there"}, {"path": str(tmp_path / "c"), "weight": 2.0}]
    run = train(read_recipe(recipe_content(corpus, **FEW, **live(lm_run.path), corpus=entries)), out=tmp_path / "run")
    assert all(line["kd"] > 0 for line in steps_of(run))
    assert run.environment["inputs"]["store"] == []


def test_documents_stay_apart_beside_a_live_teacher_too(masked_corpus: Path, lm_run: Run, tmp_path: Path) -> None:
    truncation = {"truncation": {"kind": "top_k", "k": 50}, "lr": {"kind": "constant", "value": 1e-3}}
    from predistill.objective import TopK

    capture(lm_run.path, corpus=masked_corpus, out=tmp_path / "store", truncation=TopK(k=50))
    content = recipe_content(masked_corpus, tmp_path / "store", **FEW, **truncation)
    stored = train(read_recipe(content), out=tmp_path / "stored")
    beside = train(read_recipe(content | live(lm_run.path)), out=tmp_path / "live")
    for ours, theirs in zip(steps_of(stored), steps_of(beside), strict=True):
        assert abs(ours["kd"] - theirs["kd"]) < 1e-3


def test_a_live_teacher_in_bf16_is_near_itself(corpus: Path, lm_run: Run, tmp_path: Path) -> None:
    one = {"tokens": ROW_LEN, "batch_tokens": ROW_LEN, "micro_batch_rows": 1}  # bfloat16 is emulated on many CPUs
    kd = [
        steps_of(
            train(read_recipe(recipe_content(corpus, **live(lm_run.path, dtype=dtype), **one)), out=tmp_path / dtype)
        )[0]["kd"]
        for dtype in ("fp32", "bf16")
    ]
    assert kd[0] != kd[1]
    assert kd[1] == pytest.approx(kd[0], rel=0.05)


def test_going_on_beside_a_live_teacher_equals_never_stopping(live_run: Run, tmp_path: Path) -> None:
    def die_at_20(record: Any) -> None:
        if record["kind"] == "step" and record["step"] == 20:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(read_recipe(live_run.recipe), out=tmp_path / "run", on_record=die_at_20)
    resumed = train(read_recipe(live_run.recipe), out=tmp_path / "run")
    assert timeless(resumed) == timeless(live_run)
    assert weights(resumed) == weights(live_run)


def test_the_optimizer_sees_the_student_alone(
    corpus: Path, lm_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers: list[PreTrainedModel] = []
    original_init, original_step = LiveTeacher.__init__, train_module.train_step
    checked = []

    def init(self: LiveTeacher, model: PreTrainedModel, **choices: Any) -> None:
        teachers.append(model)
        original_init(self, model, **choices)

    def step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, *window: Any, **choices: Any) -> Any:
        result = original_step(model, optimizer, *window, **choices)
        (teacher,) = teachers
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert owned == {id(p) for p in model.parameters()}
        assert {id(p) for p in optimizer.state} == owned
        for parameter in teacher.parameters():
            assert id(parameter) not in owned
            assert not parameter.requires_grad
            assert parameter.grad is None
        checked.append(result)
        return result

    monkeypatch.setattr(LiveTeacher, "__init__", init)
    monkeypatch.setattr(train_module, "train_step", step)
    train(read_recipe(recipe_content(corpus, **FEW, **live(lm_run.path))), out=tmp_path / "run")
    assert len(checked) == 3
    kept = load_file(lm_run.model_path / "model.safetensors")
    ran = teachers[0].state_dict()
    assert all(torch.equal(ran[name], tensor) for name, tensor in kept.items())


def test_a_run_does_not_go_on_with_another_teacher(lm_run: Run, corpus: Path, tmp_path: Path) -> None:
    model = tmp_path / "teacher"
    shutil.copytree(lm_run.model_path, model)
    recipe = read_recipe(recipe_content(corpus, **FEW, **live(model)))
    run = train(recipe, out=tmp_path / "run")
    (run.path / "DONE").unlink()
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] *= 2
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"other inputs: teacher was \['"):
        train(recipe, out=tmp_path / "run")


def refused(content: dict[str, Any], folder: Path, kind: type[PredistillError], *words: str) -> None:
    """Training refuses it in a sentence that holds `words`, and writes nothing."""
    with pytest.raises(kind) as caught:
        train(read_recipe(content), out=folder / "refused")
    for word in words:
        assert word in str(caught.value)
    assert not (folder / "refused").exists()


def test_a_teacher_that_is_not_there_is_refused_and_nothing_is_written(corpus: Path, tmp_path: Path) -> None:
    refused(recipe_content(corpus, **live(tmp_path / "no")), tmp_path, TeacherError, f"{tmp_path / 'no'}: no such")


def test_a_teacher_of_fewer_words_is_refused_and_nothing_is_written(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher_path(), tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "small" / "config.json").write_text(json.dumps(config | {"vocab_size": 1000}), encoding="utf-8")
    content = recipe_content(corpus, **live(tmp_path / "small"))
    refused(content, tmp_path, TeacherError, "1,000 words", "2,048", "predistill prepare --tokenizer")


def test_a_scaled_temperature_without_a_reference_is_refused_with_where_to_find_one(
    corpus: Path, tmp_path: Path
) -> None:
    content = recipe_content(corpus, **live(teacher_path()), temperature={"kind": "std"})
    refused(content, tmp_path, RecipeError, "temperature.reference", "mean_logit_std", "store inspect")


def test_the_teacher_s_forward_passes_are_in_the_cost(corpus: Path, lm_run: Run) -> None:
    plain = read_recipe(recipe_content(corpus))
    beside = read_recipe(recipe_content(corpus, **live(lm_run.path)))
    sizes = [open_inputs(recipe).sizes(recipe) for recipe in (plain, beside)]
    words, preset = Corpus(corpus).vocab_size, PRESETS["nano-xs"]
    each = 2 * (preset.non_embedding_parameters + words * preset.hidden) + 2 * preset.layers * ROW_LEN * preset.hidden
    assert sizes[1]["teacher_flops"] == sizes[1]["tokens"] * each
    assert sizes[1]["flops"] == sizes[0]["flops"] + sizes[1]["teacher_flops"]
    assert sizes[1]["teacher_parameters"] == preset.parameters(words)
    assert sizes[1]["memory_bytes"]["teacher"] == 4 * preset.parameters(words)
    assert "teacher" not in sizes[0]["memory_bytes"]


def test_the_records_name_the_teacher(live_run: Run, lm_run: Run, tmp_path: Path) -> None:
    assert live_run.environment["inputs"]["teacher"]["name"] == lm_run.path.name
    assert live_run.environment["identity"]["teacher"] == live_run.environment["inputs"]["teacher"]["sha256"]
    assert f"distributions of {lm_run.path.name} " in (live_run.model_path / "README.md").read_text(encoding="utf-8")
    for name, run in (("lm", lm_run), ("live", live_run)):
        shutil.copytree(run.path, tmp_path / name)
        evaluate(tmp_path / name, teacher=lm_run.path, limit=8)
    page = report([tmp_path], out=tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"Teacher beside the student: {lm_run.path.name}." in page
    assert f"the forward passes of the teacher beside it ({lm_run.path.name}) included" in page
