"""Our evaluation beside lm-eval's own: its task definitions and its model class, the same model, the same rows of real
task files, in one process. Scores have to be equal; CPU and wall seconds are of asking, tokenising and scoring.

    python benchmarks/tasks.py                  # the nano teacher, and SmolLM2 135M where $PREDISTILL_GGUF names it

A task of a model is measured `rounds` times, in the order AB, BA, ...; what is measured is kept at once, and measured
again only with --anew. lm-eval runs 16 rows of the small model at once; of the large one a row (its default), since 16
prompts of 1,500 tokens at 49,152 words are logits of 4.7 GB, which took it 520 s.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

import torch
from corpora import DATA
from record import RESULTS, write_record
from turns import Cost, cost_of, ratios

from predistill.assets import teacher_path
from predistill.evaluation.answers import Answers, quiet
from predistill.evaluation.harness import measure_task
from predistill.evaluation.rows import asked_rows
from predistill.evaluation.suites import Task, chosen_tasks
from predistill.students.build import load_model, load_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from lm_eval.models.huggingface import HFLM

from tests.evaluation.theirs import their_scores

TASKS = "hellaswag,winogrande,piqa,arc_easy,lambada,boolq,mmlu:5,openbookqa,kbqa,blimp"
LIMIT = 100


def models() -> Iterator[tuple[str, Path, int, int]]:
    """Name, path, rounds, and rows that lm-eval runs at once."""
    yield "nano teacher (2.2M)", teacher_path(), 3, 16
    if "PREDISTILL_GGUF" in os.environ:
        yield "SmolLM2-135M-Instruct", Path(os.environ["PREDISTILL_GGUF"]), 1, 1


def measured(task: Task, ours: Answers, theirs: HFLM, *, rounds: int) -> dict[str, Any]:
    """Both scores of a task, and what they cost."""
    asked = asked_rows(task, data=DATA, limit=LIMIT)
    group = task.rows.group or ""
    shown = [{**row, **({group: key} if group else {})} for key, rows in asked.shots.items() for row in rows]
    scores: dict[str, dict[str, float]] = {}

    def ask_ours(_: int) -> None:
        metrics = measure_task(ours, task, asked)["metrics"]
        scores["ours"] = {name: round(metric["value"], 12) for name, metric in metrics.items()}

    def ask_theirs(_: int) -> None:
        scores["theirs"] = their_scores(theirs, task.name, asked.rows, shots=task.shots, shown=shown)

    costs: dict[str, list[Cost]] = {"ours": [], "theirs": []}
    for number in range(rounds):
        turns = [("ours", ask_ours), ("theirs", ask_theirs)]
        for name, work in turns if number % 2 else reversed(turns):
            costs[name].append(cost_of(work, number))
    return {
        "shots": task.shots,
        "rows": len(asked.rows),
        "rounds": rounds,
        **{name: {metric: round(value, 6) for metric, value in found.items()} for name, found in scores.items()},
        "equal": all(scores["ours"][m] == round(v, 12) for m, v in scores["theirs"].items() if m != "perplexity"),
        **ratios(costs["ours"], costs["theirs"]),
        **{f"{name}_cpu_seconds": round(sum(cost.cpu for cost in costs[name]) / rounds, 2) for name in costs},
        **{f"{name}_seconds": round(sum(cost.wall for cost in costs[name]) / rounds, 2) for name in costs},
    }


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--anew", action="store_true")
    anew = parser.parse_args().anew
    file = RESULTS / "tasks.json"
    results: dict[str, Any] = json.loads(file.read_text())["models"] if file.exists() and not anew else {}
    for name, path, rounds, batch_rows in models():
        kept = results.setdefault(name, {})
        left = [task for task in chosen_tasks(TASKS) if task.name not in kept]
        if not left:
            continue
        model, tokenizer = load_model(path, device=torch.device("cpu")).eval(), load_tokenizer(path)
        ours = Answers(model, tokenizer)
        with quiet():
            theirs = HFLM(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=batch_rows)
        for task in left:
            kept[task.name] = {"batch_rows": batch_rows, **measured(task, ours, theirs, rounds=rounds)}
            write_record("tasks", {"threads": torch.get_num_threads(), "models": results})


if __name__ == "__main__":
    main()
