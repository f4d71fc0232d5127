"""What time and memory of a training step grow with, and what they do not grow with.

    python benchmarks/scale.py              all of it; writes benchmarks/results/scale.json
    python benchmarks/scale.py --only kept  one part, printed and not kept

nano-s, rows of 256 tokens, one thread, corpora and stores of `invented.py`; `lm` beside `pd`, which reads top-.95-50.
Arms take turns; medians over the rounds of CPU seconds, the reading process's included. peak_mib as in step.py.

  tokens      a batch of more and more micro-batches of 8 rows: slope of log CPU seconds in log tokens; 1 is linear
  rows        a batch of 32 rows in micro-batches of so many
  kept        entries a position, all positions alike, V 8,192
  vocabulary  V, 50 entries a position
  run         2,000 steps of `predistill train`, nano-xs and one reader, seen from outside: a step's CPU seconds in the
              last quarter over those in the first, and what is resident of the training process
  processes   tokens a second of `predistill train` under torchrun, one process and two, readers 0
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from arms import Arm, children, peak_apart, recipe_of, resident_mib
from invented import invented_corpus, invented_store
from record import write_record
from turns import Cost, in_turns

from predistill.corpus import Corpus
from predistill.memory import keep_freed_memory

ROW_LEN = 256
KEPT, MOST = 40, 50  # entries a position in the mean, and at the most
TOKENS_ROWS = (8, 16, 32, 64, 128)
MICRO_ROWS = (2, 4, 8, 16, 32)
KEPT_EACH = (10, 50, 100)
VOCABULARIES = (2_048, 8_192, 49_152)
RUN_STEPS, RUN_SETTLED = 2_000, 200
PROCESS_STEPS, PROCESS_SETTLED = 40, 5
TRAIN = ["-m", "predistill", "train"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


class Bench:
    """Corpora and stores by their shape, made when they are asked for."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder, self.rounds = folder, rounds
        self._corpora: dict[int, Corpus] = {}

    def corpus(self, vocabulary: int = 2_048) -> Corpus:
        if vocabulary not in self._corpora:
            folder = self.folder / f"words-{vocabulary}"
            self._corpora[vocabulary] = invented_corpus(folder, vocabulary=vocabulary, rows=130, row_len=ROW_LEN)
        return self._corpora[vocabulary]

    def recipe(
        self, *, taught: bool, vocabulary: int = 2_048, kept: int = KEPT, most: int = MOST, rows: int = 16, **more: Any
    ) -> Any:
        """LM's or PD's."""
        corpus, shape = self.corpus(vocabulary), {"student": "nano-s", "batch_rows": rows}
        if not taught:
            return recipe_of(corpus, **(shape | more))
        store = self.folder / f"store-{vocabulary}-{kept}-{most}"
        if not store.exists():
            invented_store(store, corpus, kept=kept, most=most)
        cut = {"kind": "top_p_k", "p": 0.95, "k": most}
        return recipe_of(corpus, store=store, truncation=cut, **(shape | more))

    def measured(self, recipes: dict[str, Any], *, rounds: int | None = None) -> dict[str, list[Cost]]:
        arms = {name: Arm(recipe) for name, recipe in recipes.items()}
        costs = in_turns(arms, rounds=rounds or self.rounds)
        for arm in arms.values():
            arm.batches.__exit__()
        return costs

    def table(self, shapes: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """lm and pd at each shape: CPU seconds, the ratio, the peaks."""
        recipes = {
            f"{name} {kind}": self.recipe(taught=kind == "pd", **shape)
            for name, shape in shapes.items()
            for kind in ("lm", "pd")
        }
        costs = self.measured(recipes)
        found: dict[str, Any] = {}
        for name in shapes:
            lm, pd = costs[f"{name} lm"], costs[f"{name} pd"]
            found[name] = {
                "lm_cpu_seconds": middle(lm),
                "pd_cpu_seconds": middle(pd),
                "cpu_ratio": round(statistics.median(a.cpu / b.cpu for a, b in zip(pd, lm, strict=True)), 3),
                **{f"{kind}_peak_mib": peak_apart(recipes[f"{name} {kind}"])["peak_mib"] for kind in ("lm", "pd")},
            }
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PARTS))
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    keep_freed_memory()  # as the program does
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(Path(temporary), args.rounds)
        parts = {name: part(bench) for name, part in PARTS.items() if args.only in (None, name)}
    content = {"threads": torch.get_num_threads(), "rounds": args.rounds, **parts}
    if args.only is None:
        write_record("scale", content)
    else:
        print(json.dumps(content, indent=2))


def tokens(bench: Bench) -> dict[str, Any]:
    found = {}
    for kind in ("lm", "pd"):
        recipes = {str(rows): bench.recipe(taught=kind == "pd", rows=rows, micro_batch_rows=8) for rows in TOKENS_ROWS}
        costs = bench.measured(recipes)
        points = {rows * ROW_LEN: middle(costs[str(rows)]) for rows in TOKENS_ROWS}
        found[kind] = {"slope": slope(points), "cpu_seconds": points}
    return found


def rows(bench: Bench) -> dict[str, Any]:
    return bench.table({str(micro): {"rows": 32, "micro_batch_rows": micro} for micro in MICRO_ROWS})


def kept(bench: Bench) -> dict[str, Any]:
    return bench.table({str(each): {"vocabulary": 8_192, "kept": each, "most": each} for each in KEPT_EACH})


def vocabulary(bench: Bench) -> dict[str, Any]:
    return bench.table({str(words): {"vocabulary": words, "kept": 50, "rows": 8} for words in VOCABULARIES})


def run(bench: Bench) -> dict[str, Any]:
    recipe = bench.recipe(taught=True, student="nano-xs", rows=2, tokens=RUN_STEPS * 2 * ROW_LEN, readers=1)
    out = bench.folder / "run"
    process = subprocess.Popen(
        [sys.executable, *TRAIN, write(bench.folder, recipe), "--out", str(out)], stdout=-3, stderr=-3
    )
    seen: list[tuple[int, float, float]] = []  # steps, CPU seconds, resident MiB
    while process.poll() is None:
        time.sleep(0.05)
        try:
            seen.append((steps_of(out), tree_cpu_seconds(process.pid), resident_mib("VmRSS", process.pid)))
        except (OSError, StopIteration, IndexError):  # not begun, or ended meanwhile
            continue
    assert process.returncode == 0, "the run failed"
    at = {step: next(one for one in seen if one[0] >= step) for step in (RUN_SETTLED, 650, 1_350, 1_800)}
    first, last = ((at[b][1] - at[a][1]) / (at[b][0] - at[a][0]) for a, b in ((RUN_SETTLED, 650), (1_350, 1_800)))
    resident = [(step, mib) for step, _, mib in seen if step >= RUN_SETTLED]
    return {
        "steps": RUN_STEPS,
        "first_cpu_ms_a_step": round(first * 1e3, 3),
        "last_cpu_ms_a_step": round(last * 1e3, 3),
        "last_to_first": round(last / first, 3),
        "resident_mib_after_200": round(resident[0][1], 1),
        "resident_mib_at_end": round(statistics.median(mib for step, mib in resident if step >= 1_800), 1),
        "growth_mib": round(statistics.median(mib for step, mib in resident if step >= 1_800) - resident[0][1], 1),
        "most_mib": round(max(mib for _, mib in resident), 1),
    }


def processes(bench: Bench) -> dict[str, Any]:
    found = {}
    for kind in ("lm", "pd"):
        recipe = bench.recipe(taught=kind == "pd", rows=32, micro_batch_rows=16, tokens=PROCESS_STEPS * 32 * ROW_LEN,
                              readers=0, evaluate_every=None, checkpoint_every=None)  # fmt: skip
        rates = {}
        for count in (1, 2):
            out = bench.folder / f"{kind}-{count}"
            command = [sys.executable, *TORCHRUN, str(count), *TRAIN, write(bench.folder, recipe), "--out", str(out)]
            subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            steps = [line for line in lines if line["kind"] == "step"][PROCESS_SETTLED:]
            rates[count] = (steps[-1]["tokens"] - steps[0]["tokens"]) / (steps[-1]["seconds"] - steps[0]["seconds"])
        found[kind] = {
            "one_tokens_a_second": round(rates[1], 1),
            "two_tokens_a_second": round(rates[2], 1),
            "two_to_one": round(rates[2] / rates[1], 3),
        }
    return found


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    part.__name__: part for part in (tokens, rows, kept, vocabulary, run, processes)
}


def middle(costs: list[Cost]) -> float:
    return round(statistics.median(cost.cpu for cost in costs), 5)


def slope(points: dict[int, float]) -> float:
    """Of log y in log x, by least squares."""
    fit = statistics.linear_regression([math.log(x) for x in points], [math.log(y) for y in points.values()])
    return round(fit.slope, 3)


def write(folder: Path, recipe: Any) -> str:
    """The recipe's file; JSON is YAML."""
    (file := folder / "recipe.yaml").write_text(json.dumps(recipe.resolved()))
    return str(file)


def steps_of(out: Path) -> int:
    """The last step in the run's metrics."""
    lines = (out / "metrics.jsonl").read_bytes().splitlines()
    return next(found["step"] for line in reversed(lines[:-1]) if (found := json.loads(line))["kind"] == "step")


def tree_cpu_seconds(process: int) -> float:
    """Of a process and of those that it has started."""
    ticks = 0
    for each in (process, *children(process)):
        fields = Path(f"/proc/{each}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
