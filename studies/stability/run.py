"""Does what a teacher gave last? Students trained past their budget, then on another domain, then fine-tuned.

    OMP_NUM_THREADS=1 python studies/stability/run.py OUT    (goes on where it was; $PREDISTILL_DATA: the corpora)

Text: every sixth document of en_wiki, every sixth of en_books, GSM8K's training problems. Students: nano-xs, three
seeds; one learned from the text alone, one from the embedded teacher too. After pre-training both go the same way:
books without a teacher, then GSM8K's solutions. Held-out loss and calibration on all three, at every twentieth of a
stage. Records are kept here, README.md says what they mean.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import zstandard

from predistill.assets import teacher_path, tokenizer_path
from predistill.memory import keep_freed_memory
from predistill.objective import TopPK
from predistill.recipe import read_recipe
from predistill.report.gains import student_t_975
from predistill.stages.capture import capture
from predistill.stages.evaluate import evaluate
from predistill.stages.prepare import prepare
from predistill.stages.report import report
from predistill.stages.train import train

HERE = Path(__file__).parent
DATA = Path(os.environ.get("PREDISTILL_DATA", HERE.parents[2] / "shared" / "data"))
EVERY, HELD_OUT, SEEDS = 6, 0.03, range(3)  # the teacher never saw documents of the held-out 3 %
ARMS, STAGES, CORPORA = ("lm", "pd"), ("pretrained", "books", "finetune"), ("wiki", "books", "gsm8k")
RECORDS = ("recipe.yaml", "environment.json", "metrics.jsonl", "findings.jsonl", "DONE")


def main() -> None:
    """Prepare, capture, train the three stages of each arm and seed, measure, keep the records."""
    keep_freed_memory()
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)  # paths in the records are relative to the study
    for name in ("wiki", "books"):
        if not Path(name).exists():
            Path(f"{name}.jsonl").write_text("".join(lines(f"corpora/en_{name}")), encoding="utf-8")
            prepare(f"{name}.jsonl", out=name, tokenizer=tokenizer_path(), held_out=HELD_OUT)
    if not Path("gsm8k").exists():
        problems = DATA / "eval" / "gsm8k.train.jsonl.zst"
        prepare(problems, out="gsm8k", tokenizer=tokenizer_path(), held_out=HELD_OUT, instruct=True)
    capture(teacher_path(), corpus="wiki", out="store", truncation=TopPK(p=0.95, k=100))
    for seed in SEEDS:
        for arm in ARMS:
            pretrained = trained(arm, f"{arm}-{seed}", seed)
            books = trained("books", f"{arm}-{seed}-books", seed, start=pretrained)
            trained("finetune", f"{arm}-{seed}-finetune", seed, start=books)
    pretrained = [f"runs/{run_name(arm, seed, 'pretrained')}" for arm in ARMS for seed in SEEDS]
    report(pretrained, out=HERE / "report.html")
    summary = json.dumps(found(), indent=1)
    (HERE / "records" / "summary.json").write_text(summary + "\n", encoding="utf-8")
    print(summary)


def lines(corpus: str) -> Iterator[str]:
    """Every sixth document, a line of JSON each."""
    with (DATA / f"{corpus}.jsonl.zst").open("rb") as compressed:
        reader = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(compressed), encoding="utf-8")
        yield from (line for number, line in enumerate(reader) if number % EVERY == 0)


def trained(recipe: str, name: str, seed: int, start: Path | None = None) -> Path:
    """The finished run of a recipe of this folder, measured on every corpus, its records kept."""
    overrides = [f"name={name}", f"seed={seed}", *([] if start is None else [f"student.from={start}"])]
    run = train(read_recipe(HERE / f"{recipe}.yaml", overrides), out=f"runs/{name}")
    kept = HERE / "records" / name
    kept.mkdir(parents=True, exist_ok=True)
    if not (kept / "heldout.json").exists():
        own = run.recipe["corpus"][0]["path"]  # last: what is measured last is what the run keeps, and the page shows
        order = sorted(CORPORA, key=lambda corpus: corpus == own)
        measured = {corpus: evaluate(run.path, corpus=corpus)["heldout"] for corpus in order}
        (kept / "heldout.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        print(name, {corpus: round(heldout["loss_nats"], 4) for corpus, heldout in measured.items()}, flush=True)
    for file in RECORDS:
        shutil.copyfile(run.path / file, kept / file)
    return run.path


def found() -> dict[str, Any]:
    """Of every corpus, after every stage: each arm's loss and calibration error by seed, and PD less LM, paired; and
    what each stage cost of the encyclopedia (forgetting)."""
    measured = {
        run_name(arm, seed, stage): json.loads(
            (HERE / "records" / run_name(arm, seed, stage) / "heldout.json").read_text()
        )
        for arm in ARMS
        for seed in SEEDS
        for stage in STAGES
    }

    def value(arm: str, seed: int, stage: str, corpus: str, what: str) -> float:
        return float(measured[run_name(arm, seed, stage)][corpus][what])

    def after(stage: str, corpus: str, what: str) -> dict[str, Any]:
        values = {arm: [value(arm, seed, stage, corpus, what) for seed in SEEDS] for arm in ARMS}
        return values | {"pd_less_lm": paired(values["pd"], values["lm"])}

    def forgotten(stage: str) -> dict[str, Any]:
        before, later = after("pretrained", "wiki", "loss_nats"), after(stage, "wiki", "loss_nats")
        values = {arm: [b - a for a, b in zip(before[arm], later[arm], strict=True)] for arm in ARMS}
        return values | {"pd_less_lm": paired(values["pd"], values["lm"])}

    return {
        "after": {
            stage: {corpus: {what: after(stage, corpus, what) for what in ("loss_nats", "ece")} for corpus in CORPORA}
            for stage in STAGES
        },
        "forgotten_of_wiki": {stage: forgotten(stage) for stage in STAGES[1:]},
        "over_time": over_time(),
    }


def over_time() -> dict[str, Any]:
    """PD less LM on the encyclopedia's held-out rows while both are pre-trained, by tokens."""
    curves = {arm: [heldout_lines(run_name(arm, seed, "pretrained")) for seed in SEEDS] for arm in ARMS}
    return {
        f"{tokens:,}": paired([curve[tokens] for curve in curves["pd"]], [curve[tokens] for curve in curves["lm"]])
        for tokens in curves["lm"][0]
    }


def heldout_lines(name: str) -> dict[int, float]:
    """tokens -> held-out nats on the encyclopedia."""
    records = map(json.loads, (HERE / "records" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["tokens"]: line["loss_nats"] for line in records if line.get("corpus") == "wiki"}


def run_name(arm: str, seed: int, stage: str) -> str:
    """The run's directory."""
    return f"{arm}-{seed}" + ("" if stage == "pretrained" else f"-{stage}")


def paired(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Mean of ours less theirs; mean -+ t(.975, n - 1) * sd / sqrt(n)."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    half = student_t_975(len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
    mean = fmean(differences)
    return {"mean_difference": mean, "interval_95": [mean - half, mean + half]}


if __name__ == "__main__":
    main()
