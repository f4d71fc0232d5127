"""The recipes that are shipped: each says what it would take, the paper's are the paper's, and a nano counterpart of
each trains."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from predistill.errors import CorpusError, RecipeError
from predistill.recipe import Recipe, read_recipe
from predistill.runs import Run
from predistill.stages.dry_run import dry_run, words
from predistill.stages.prepare import prepare
from predistill.stages.train import train
from predistill.students import PRESETS
from tests.made import BATCH_ROWS, ROW_LEN

ROOT = Path(__file__).parents[1]
PAPER = sorted((ROOT / "recipes" / "paper").glob("*.yaml"))
NANO = sorted((ROOT / "recipes" / "nano").rglob("*.yaml"))
COUNTERPARTS = sorted((ROOT / "recipes" / "nano" / "paper").glob("*.yaml"))
STEPS = 4
VOCABULARY = 151_552


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # recipes name their files from there


def named(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", PAPER, ids=named)
def test_a_recipe_of_the_paper_dry_runs_with_nothing_of_it_there(path: Path) -> None:
    recipe = read_recipe(path)
    facts = dry_run(recipe, ranks=64)
    size = recipe.student.preset
    expected = PRESETS[size].parameters(VOCABULARY) if size in PRESETS else 9_399_951_360  # GLM-4-9B
    assert facts["assumed"]
    assert facts["parameters"] == expected
    assert facts["batch_tokens"] == 2048 * 4096
    assert facts["steps"] == {100: 11_921, 400: 47_684, 500: 59_605, 20: 2_385}[recipe.tokens // 10**9]
    assert facts["days_64"] == pytest.approx(facts["flops"] / (64 * 0.4 * 989e12 * 86_400))
    assert facts["memory_bytes"] < 80e9  # an H100's
    if recipe.taught:
        assert facts["store_bytes"] > 10 * recipe.tokens
        assert facts["capture_flops"] == 2 * 9e9 * recipe.tokens
    assert f"{expected:,}" in words(facts)


@pytest.mark.parametrize("size", PRESETS)
@pytest.mark.parametrize("name", ["lm", "pd", "pd-star"])
def test_a_size_is_an_override_too(name: str, size: str) -> None:
    facts = dry_run(read_recipe(ROOT / "recipes" / "paper" / f"{name}.yaml", [f"student.preset={size}"]))
    assert facts["parameters"] == PRESETS[size].parameters(VOCABULARY)


def test_every_run_of_the_paper_has_a_recipe() -> None:
    sizes = [f"{kind}-{size}" for kind in ("lm", "pd") for size in ("330m", "670m", "3.8b", "6.8b")]
    corpus = [f"{kind}-500b-{size}" for kind in ("lm", "pd") for size in ("1.9b", "3.8b")]
    logged = ["teacher-early", "teacher-last", "logged-early", "logged-last", "logged-last-mixed"]
    assert {path.stem for path in PAPER} == {"lm", "pd", "pd-star", "finetune", *sizes, *corpus, *logged}
    for path in PAPER:
        first, second, third = path.read_text().splitlines()[:3]
        assert first.startswith("# ")
        assert second.startswith("# ")
        assert third == f"name: paper-{path.stem}"


@pytest.mark.parametrize("path", PAPER, ids=named)
def test_the_nano_counterpart_differs_in_its_sizes_alone(path: Path) -> None:
    ours, theirs = (choices(read_recipe(where)) for where in (ROOT / "recipes" / "nano" / "paper" / path.name, path))
    assert ours == theirs
    assert len(COUNTERPARTS) == len(PAPER)


def choices(recipe: Recipe) -> dict[str, Any]:
    """What a recipe chooses, beside sizes, places and the peak of its learning rate."""
    content = recipe.resolved()
    content["lr"].pop("peak")
    log = content["log_targets"] or {}
    return {
        key: content[key]
        for key in ("teacher", "truncation", "temperature", "tail", "loss", "positions", "alpha", "lr", "optimizer")
    } | {
        "log": {key: log.get(key) for key in ("from_frac", "to_frac", "truncation")},
        "corpus": [(entry["weight"], entry["store"] is None) for entry in content["corpus"]],
        "from": content["student"]["from"] is None,
    }


@pytest.fixture(scope="module")
def instruct_corpus(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions with their answers, in the words of the corpus."""
    folder = tmp_path_factory.mktemp("instruct")
    lines = [json.dumps({"question": f"What is {n} + {n}?", "solution": f"It is {2 * n}."}) for n in range(400)]
    (folder / "asked.jsonl").write_text("\n".join(lines) + "\n")
    prepare(
        folder / "asked.jsonl", out=folder / "corpus", tokenizer=corpus, row_len=ROW_LEN, processes=1, instruct=True
    )
    return folder / "corpus"


def made_small(path: Path, corpus: Path, store: Path, start: Run, out: Path, *, instruct: Path) -> Recipe:
    """A recipe for a CPU, on a small corpus and in a few steps."""
    recipe = read_recipe(path)
    overrides = [
        f"tokens={STEPS * BATCH_ROWS * ROW_LEN}",
        f"batch_tokens={BATCH_ROWS * ROW_LEN}",
        f"micro_batch_rows={BATCH_ROWS}",
        "readers=0",
        "evaluate_every=2",
    ]
    for i, entry in enumerate(recipe.corpus):
        overrides.append(f"corpus.{i}.path={instruct if 'instruct' in entry.path else corpus}")
        overrides += [f"corpus.{i}.store={store}"] if entry.store is not None else []
    if recipe.log_targets is not None:
        overrides.append(f"log_targets.out={out / 'logged'}")
    if recipe.student.from_ is not None:
        overrides += [f"student.from={start.path}", "student.preset=nano-xs"]
    return read_recipe(path, overrides)


@pytest.mark.parametrize("path", NANO, ids=named)
def test_a_nano_recipe_dry_runs_and_trains(
    path: Path, corpus: Path, store: Path, lm_run: Run, instruct_corpus: Path, tmp_path: Path
) -> None:
    recipe = made_small(path, corpus, store, lm_run, tmp_path, instruct=instruct_corpus)
    facts = dry_run(recipe)
    assert not facts["assumed"]
    assert facts["steps"] == STEPS
    assert (facts["store_bytes"] > 0) == recipe.taught
    run = train(recipe, out=tmp_path / "run")
    assert run.done is not None
    steps = [line for line in run.metrics() if line["kind"] == "step"]
    assert len(steps) == STEPS
    assert all(0 < line["lm"] < 20 for line in steps)
    assert all((line["kd"] is not None) == recipe.taught for line in steps)
    assert (tmp_path / "logged" / "manifest.json").exists() == (recipe.log_targets is not None)


def test_the_slurm_script_is_one_that_bash_reads() -> None:
    script = ROOT / "docs" / "scale.sbatch"
    subprocess.run(["bash", "-n", script], check=True)


EXPECTS = {"vocab_size": 2048, "row_len": ROW_LEN, "tokens": 1000}


def test_a_corpus_that_is_not_there_is_reckoned_with_or_refused(corpus: Path, store: Path) -> None:
    path = ROOT / "recipes" / "nano" / "pd.yaml"
    with pytest.raises(CorpusError, match="corpora/nano: no prepared corpus here"):
        dry_run(read_recipe(path))
    for where in ("none", str(corpus)):
        overrides = [f"corpus.0.path={where}", f"corpus.0.expects={EXPECTS}", "corpus.0.store=none"]
        facts = dry_run(read_recipe(path, overrides))
        assert (facts["assumed"], facts["store_estimated"]) == (True, True)
        assert "assumed" in words(facts)
    there = dry_run(read_recipe(path, [*overrides[:2], f"corpus.0.store={store}"]))
    assert (there["assumed"], there["store_estimated"]) == (False, False)
    assert "teacher_parameters" not in there


def test_an_accelerator_or_a_world_that_cannot_be_is_refused() -> None:
    recipe = read_recipe(ROOT / "recipes" / "paper" / "pd.yaml")
    with pytest.raises(RecipeError, match=r'--accelerator is "h10"; did you mean'):
        dry_run(recipe, accelerator="h10")
    with pytest.raises(RecipeError, match="shard is 8, and 4 processes"):
        dry_run(recipe, ranks=4)
    with pytest.raises(RecipeError, match="2,048 rows, which 24 processes cannot share evenly"):
        dry_run(recipe, ranks=24)
