"""Makes watch_runs.json.gz: the metrics of real nano runs, healthy and provoked, that test_watch.py replays.

    python -m tests.training.make_watch_runs OUT [RUN ...]        (a finished run is left alone)

Text: the embedded sample, and a store of the embedded teacher over it. A run is 200 steps of nano-s with 4,096 tokens
each, as recipes/nano has it. A fault begins at step 61 or with the run. What no recipe can ask for (poisoned tokens, a
slow store, a learning rate that jumps) is done to the schedule and to the batches from outside.
"""

from __future__ import annotations

import gzip
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import zstandard

from predistill.assets import sample_path, teacher_path, tokenizer_path
from predistill.memory import keep_freed_memory
from predistill.objective import TopK, TopPK
from predistill.recipe import Recipe, read_recipe
from predistill.stages.batches import Batches
from predistill.stages.capture import capture
from predistill.stages.prepare import prepare
from predistill.stages.train import train
from predistill.students.build import build_student, student_config
from predistill.students.export import export_student
from predistill.training.step import MicroBatch

STEPS, BATCH_TOKENS, FAULT = 200, 4096, 60  # FAULT: steps before it
KEPT = Path(__file__).with_name("watch_runs.json.gz")
COLUMNS = {
    "step": ("step", "lm", "kd", "kl", "alpha", "lr", "grad_norm", "seconds", "stall_s"),
    "heldout": ("step", "loss_nats", "ece"),
}

LM: dict[str, Any] = {"teacher": {"kind": "none"}}
PD: dict[str, Any] = {
    "teacher": {"kind": "stored"},
    "truncation": {"kind": "top_p_k", "p": 0.95, "k": 100},
    "tail": {"kind": "ghost"},
    "alpha": {"kind": "constant", "value": 0.9},
}
PD_STAR: dict[str, Any] = {
    "teacher": {"kind": "stored"},
    "truncation": {"kind": "top_p_k", "p": 0.95, "k": 50},
    "temperature": {"kind": "static", "value": 2.0},
    "alpha": {"kind": "wsd", "peak": 0.9, "warmup_frac": 0.1, "decay_frac": 0.1},
}
UNTRAINED: dict[str, Any] = {**PD, "teacher": {"kind": "live", "model": "untrained"}}


@dataclass(frozen=True)
class Multiplied:
    """The learning rate of `schedule`, times `factor` for `steps` steps from the fault on."""

    schedule: Any
    factor: float
    steps: int = STEPS

    def __call__(self, step: float, steps: float) -> float:
        """The value at `step` of `steps`."""
        factor = self.factor if FAULT <= step < FAULT + self.steps else 1.0
        return float(self.schedule(step, steps) * factor)


def lr_times(factor: float, steps: int = STEPS) -> Callable[[Recipe], Recipe]:
    """A change of the recipe: the learning rate times `factor` from the fault on."""
    return lambda recipe: recipe.model_copy(update={"lr": Multiplied(recipe.lr, factor, steps)})


Window = Callable[[Batches, int], Iterator[MicroBatch]]


def poisoned(window: Window) -> Window:
    """Random tokens and labels for two steps."""

    def changed(batches: Batches, step: int) -> Iterator[MicroBatch]:
        for batch in window(batches, step):
            if step - FAULT in (0, 1):
                ids_BT1 = torch.randint(2048, batch.ids_BT1.shape, generator=torch.Generator().manual_seed(step))
                batch = replace(batch, ids_BT1=ids_BT1, label_BT=ids_BT1[:, 1:].clone())
            yield batch

    return changed


def slow(window: Window) -> Window:
    """The store takes a second and a half for every micro-batch."""

    def changed(batches: Batches, step: int) -> Iterator[MicroBatch]:
        for batch in window(batches, step):
            if step >= FAULT:
                time.sleep(1.5)
                batches.stall_seconds += 1.5
            yield batch

    return changed


def stuck(window: Window) -> Window:
    """The same batch, again and again."""
    return lambda batches, step: window(batches, min(step, FAULT))


def certain(window: Window) -> Window:
    """The teacher seems to be certain of its first word everywhere."""

    def changed(batches: Batches, step: int) -> Iterator[MicroBatch]:
        for batch in window(batches, step):
            if step >= FAULT and batch.targets is not None:
                first = TopK(k=1).narrow(batch.targets)
                sure = replace(
                    first,
                    logprob_NK=torch.zeros_like(first.logprob_NK),
                    log_rest_N=torch.full_like(first.log_rest_N, -math.inf),
                )
                batch = replace(batch, targets=sure)
            yield batch

    return changed


@dataclass(frozen=True)
class Made:
    """How a run is made: what its recipe says, what is done from outside, the last step that is worth time."""

    content: dict[str, Any]
    recipe: Callable[[Recipe], Recipe] = lambda recipe: recipe
    window: Callable[[Window], Window] = lambda window: window
    last: int = STEPS


RUNS = {
    **{f"lm-{seed}": Made({**LM, "seed": seed}) for seed in range(5)},
    **{f"pd-{seed}": Made({**PD, "seed": seed}) for seed in range(5)},
    "pd-star-0": Made(PD_STAR),
    "lm-divergence": Made(LM, recipe=lr_times(100), last=FAULT + 40),
    "pd-divergence": Made(PD, recipe=lr_times(100), last=FAULT + 40),
    "lm-not-finite": Made(LM, recipe=lr_times(1e30), last=FAULT + 10),
    "lm-spike": Made(LM, window=poisoned, last=FAULT + 40),
    "pd-spike": Made(PD, window=poisoned, last=FAULT + 40),
    "lm-plateau": Made(LM, recipe=lr_times(0), last=FAULT + 40),
    "pd-plateau": Made(PD, recipe=lr_times(0), last=FAULT + 40),
    "lm-lr-high": Made({**LM, "lr": {"kind": "constant", "value": 1.0}}, last=80),
    "pd-top-3": Made({**PD, "alpha": {"kind": "constant", "value": 1.0}, "tail": {"kind": "renormalise"},
                      "truncation": {"kind": "top_p_k", "p": 0.95, "k": 3}}, last=60),
    "pd-alpha-.01": Made({**PD, "alpha": {"kind": "constant", "value": 0.01}}, last=140),
    "pd-untrained": Made({**UNTRAINED, "alpha": {"kind": "constant", "value": 0.2}}, last=60),
    "pd-slow-store": Made(PD, window=slow, last=FAULT + 20),
    "pd-certain-store": Made(PD, window=certain, last=FAULT + 40),
    "lm-one-batch": Made(LM, window=stuck, last=FAULT + 40),
    "lm-few-rows": Made({**LM, "corpus": [{"path": "few"}]}),
}  # fmt: skip


class Enough(Exception):
    """The last step that is worth time is done."""


def main() -> None:
    """Prepare and capture once, train what is named (default: every run), keep the columns that the watch reads."""
    keep_freed_memory()
    out = Path(sys.argv[1])
    made_inputs(out)
    for name in sys.argv[2:] or RUNS:
        made = RUNS[name]
        recipe = made.recipe(read_recipe(content(name, out, made.content)))
        with patched(made.window), suppress(Enough):
            train(recipe, out=out / "runs" / name, on_record=until(made.last))
        print(name, flush=True)
    if not sys.argv[2:]:
        kept = {name: columns(out / "runs" / name / "metrics.jsonl") for name in RUNS}
        KEPT.write_bytes(gzip.compress(json.dumps(kept, separators=(",", ":")).encode(), mtime=0))
        print(f"{KEPT.name}: {KEPT.stat().st_size:,} bytes")


def made_inputs(out: Path) -> None:
    """corpus and store: the whole sample; few: so little of it that 200 steps are many epochs; an untrained teacher."""
    out.mkdir(parents=True, exist_ok=True)
    with zstandard.open(sample_path(), "rt", encoding="utf-8") as lines:
        (out / "few.jsonl").write_text("".join(line for number, line in enumerate(lines) if number % 24 == 0))
    for source, corpus, held_out in ((sample_path(), "corpus", 0.03), (out / "few.jsonl", "few", 0.3)):
        if not (out / corpus).exists():
            prepare(source, out=out / corpus, tokenizer=tokenizer_path(), held_out=held_out)
    capture(teacher_path(), corpus=out / "corpus", out=out / "store", truncation=TopPK(p=0.95, k=100))
    if not (out / "untrained").exists():
        config = student_config("nano-xs", vocab_size=2048, row_len=256, end_id=0)
        export_student(build_student(config, seed=1, device=torch.device("cpu")), out=out / "untrained",
                       tokenizer=tokenizer_path(), card="")  # fmt: skip


def content(name: str, out: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """The recipe of one run, its paths below `out`."""
    corpus = changes.get("corpus", [{"path": "corpus", "store": "store"}])
    teacher = changes["teacher"]
    return {
        "name": name,
        "student": {"preset": "nano-s"},
        "lr": {"kind": "wsd", "peak": 4e-3, "warmup_frac": 0.05, "decay_frac": 0.3, "floor": 0.1},
        "tokens": STEPS * BATCH_TOKENS,
        "batch_tokens": BATCH_TOKENS,
        "micro_batch_rows": 16,
        "checkpoint_every": None,
        **changes,
        "corpus": [
            {key: str(out / path) for key, path in entry.items() if key == "path" or teacher["kind"] == "stored"}
            for entry in corpus
        ],
        "teacher": {**teacher, "model": str(out / teacher["model"])} if "model" in teacher else teacher,
    }


def until(last: int) -> Callable[[Mapping[str, Any]], None]:
    """Ends a run that is longer after the lines of step `last`."""

    def on_record(record: Mapping[str, Any]) -> None:
        if record["step"] > last:
            raise Enough

    return on_record


@contextmanager
def patched(around: Callable[[Window], Window]) -> Iterator[None]:
    """Batches with `around` around their windows."""
    plain = Batches.window
    try:
        Batches.window = around(plain)
        yield
    finally:
        Batches.window = plain


def columns(path: Path) -> dict[str, Any]:
    """The columns of a metrics.jsonl that the watch reads, in the order of their lines."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        kind: {name: [shortened(line[name]) for line in lines if line["kind"] == kind] for name in names}
        for kind, names in COLUMNS.items()
    }


def shortened(value: float | None) -> float | None:
    """Five digits."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
