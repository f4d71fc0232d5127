"""The training of a recipe, a step a call, as step.py, scale.py and gpu.py compare them. Not a benchmark itself."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from predistill.corpus import Corpus
from predistill.memory import keep_freed_memory
from predistill.recipe import Recipe, read_recipe
from predistill.stages.batches import Batches  # the very reader of `train`, not one that resembles it
from predistill.stages.inputs import open_inputs, pick_device
from predistill.students.build import build_student
from predistill.training.optim import adamw, set_lr
from predistill.training.parallel import parallelised
from predistill.training.step import StepResult, train_step
from predistill.training.student import Student
from predistill.world import World

ALPHA, LR = 0.9, 1e-3
PEAK_STEPS = 3


class Arm:
    """A recipe's training: `arm(i)` is its step i, rows and targets, hashes, forward, backward, optimizer."""

    def __init__(self, recipe: Recipe, world: World | None = None) -> None:
        self.recipe, self.inputs = recipe, open_inputs(recipe)
        self.world = world or World(0, 1, pick_device())
        bf16 = recipe.precision == "bf16"
        model = build_student(self.inputs.config, seed=recipe.seed, device=self.world.device).train()
        student = Student(model, bf16=bf16)
        self.student = parallelised(student, self.world, bf16=bf16, compiled=recipe.compile)
        self._optimizer = adamw(model, betas=recipe.optimizer.betas, weight_decay=recipe.optimizer.weight_decay)
        set_lr(self._optimizer, LR)
        self.batches = Batches(recipe, self.inputs, self.world)

    def __call__(self, step: int) -> StepResult:
        return train_step(
            self.student,
            self._optimizer,
            self.batches.window(step),
            objective=self.batches.objective,
            alpha=ALPHA if self.recipe.taught else 0.0,
            clip=self.recipe.optimizer.clip,
            world=self.world,
        )

    def __enter__(self) -> Arm:
        return self

    def __exit__(self, *failure: object) -> None:
        self.batches.__exit__(*failure)

    def cpu_seconds(self) -> float:
        """Of this process and of the one that reads for this arm."""
        return time.process_time() + self.batches.reader_cpu_seconds

    @property
    def tokens(self) -> int:
        """Labels of a step, over all processes."""
        return self.batches.tokens(1)


def recipe_of(
    corpus: Corpus, *, student: str, batch_rows: int, store: Path | None = None, live: Path | None = None, **more: Any
) -> Recipe:
    """LM alone; or taught by a store, or by a model. `more`: other keys of the recipe. One micro-batch a step."""
    teacher: dict[str, Any] = {"kind": "none" if store is None else "stored"}
    if live is not None:
        teacher = {"kind": "live", "model": str(live)}
    content: dict[str, Any] = {
        "corpus": [{"path": str(corpus.path), "store": None if store is None else str(store)}],
        "student": {"preset": student},
        "teacher": teacher,
        "alpha": {"kind": "constant", "value": ALPHA},
        "lr": {"kind": "constant", "value": LR},
        "tokens": "100M",
        "batch_tokens": batch_rows * corpus.row_len,
        "micro_batch_rows": batch_rows,
    }
    return read_recipe(content | more)


# Memory, each arm's in a process of its own: `python benchmarks/arms.py RECIPE` prints it.


def peak_apart(recipe: Recipe) -> dict[str, float]:
    """peak_mib: the most resident memory of training above what imports took; process_mib: with them; reader_mib: all
    of the process that reads for it, where there is one."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(recipe.model_dump_json(by_alias=True))
        file.flush()
        command = [sys.executable, __file__, file.name]
        out = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True).stdout
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def resident_mib(which: str, process: int | str = "self") -> float:
    """VmRSS: now; VmHWM: the most so far."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(which)).split()[1]) / 1024


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def main() -> None:
    keep_freed_memory()  # as the program does
    recipe = Recipe.model_validate_json(Path(sys.argv[1]).read_text())
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again from here
    base = resident_mib("VmRSS")
    with Arm(recipe) as arm:
        for step in range(PEAK_STEPS):
            arm(step)
        peak = resident_mib("VmHWM") - base
        readers = [resident_mib("VmHWM", child) for child in children(os.getpid())]
    found = {"peak_mib": peak, "process_mib": base + peak} | ({"reader_mib": sum(readers)} if readers else {})
    print(json.dumps({name: round(mib, 1) for name, mib in found.items()}))


if __name__ == "__main__":
    main()
