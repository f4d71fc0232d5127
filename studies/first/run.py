"""The first study: does a teacher help a nano student at equal tokens? LM against PD, paired seeds, real text.

    python studies/first/run.py OUT        (goes on where it was; $PREDISTILL_DATA names the corpora)

Text: every fortieth document of each corpus. Student nano-s, 1M tokens a run, the same learning rate in both arms;
PD is KLD at alpha .9 and temperature 1 from a top-.95-100 store of the embedded teacher, with the kept entries
renormalised (the paper) or the rest as one more bucket (ghost). Records and page are kept here.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path

import zstandard

from predistill.assets import teacher_path, tokenizer_path
from predistill.memory import keep_freed_memory
from predistill.objective import TopPK
from predistill.recipe import read_recipe
from predistill.stages.capture import capture
from predistill.stages.evaluate import evaluate
from predistill.stages.prepare import prepare
from predistill.stages.report import report
from predistill.stages.train import train

HERE = Path(__file__).parent
DATA = Path(os.environ.get("PREDISTILL_DATA", HERE.parents[2] / "shared" / "data"))
ARMS = ("lm", "pd", "pd-ghost")
EVERY, HELD_OUT, SEEDS = 40, 0.03, (0, 1, 2)  # the teacher never saw documents of the held-out 3 %
RECORDS = ("recipe.yaml", "environment.json", "metrics.jsonl", "evaluation.json", "DONE")


def main() -> None:
    """Prepare, capture, train, evaluate, report, keep the records."""
    keep_freed_memory()
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)  # paths in the records are relative to the study
    if not Path("corpus").exists():
        write_text(Path("text.jsonl"))
        prepare("text.jsonl", out="corpus", tokenizer=tokenizer_path(), held_out=HELD_OUT)
    capture(teacher_path(), corpus="corpus", out="store", truncation=TopPK(p=0.95, k=100))
    for seed in SEEDS:
        for arm in ARMS:
            recipe = read_recipe(HERE / f"{arm}.yaml", [f"seed={seed}"])
            recipe = recipe.model_copy(update={"name": f"{recipe.name}-seed{seed}"})
            run = train(recipe, out=f"runs/{recipe.name}")
            if run.evaluation is None:
                evaluate(run.path, teacher=teacher_path())
            print(recipe.name, (run.evaluation or {})["heldout"]["loss_nats"], flush=True)
            kept = HERE / "records" / recipe.name
            kept.mkdir(parents=True, exist_ok=True)
            for name in RECORDS:
                shutil.copyfile(run.path / name, kept / name)
    report(["runs"], out=HERE / "report.html")


def write_text(out: Path) -> None:
    """Every fortieth document of each corpus, one JSON object a line."""
    with out.open("w", encoding="utf-8") as file:
        for corpus in sorted((DATA / "corpora").glob("*.jsonl.zst")):
            with corpus.open("rb") as compressed:
                reader = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(compressed), encoding="utf-8")
                file.writelines(line for number, line in enumerate(reader) if number % EVERY == 0)


if __name__ == "__main__":
    HERE = HERE.resolve()
    DATA = DATA.resolve()
    main()
