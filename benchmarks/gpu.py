"""What a step of the paper's 330m student reaches on an accelerator: MFU, and offline PD beside LM.

    python benchmarks/gpu.py            on CUDA; writes benchmarks/results/gpu.json, elsewhere says that there is none
    python benchmarks/gpu.py --toy      a tiny student on whatever is there, printed and not kept

330m, V 151,552, rows of 4,096 tokens, bfloat16, blocks compiled, one micro-batch a step. LM and PD (KLD, alpha .9,
top-.95-50 of 23 entries a position, as the paper's teacher keeps) take turns; medians over the rounds of wall seconds
between two synchronisations. MFU counts the model's own FLOPs (laws.training_flops) against the data sheet's dense
bfloat16 peak. peak_gib is the allocator's, of an arm's weights, optimizer and steps. `targets`: "store", read and
decoded ahead from an invented one; "memory", copied from the host, where the packages that a store needs are not
installed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from record import write_record
from turns import in_turns, ratios

from predistill.laws import peak_flops, training_flops
from predistill.memory import keep_freed_memory
from predistill.objective import KLD, All, Renormalise, SparseTargets, Static
from predistill.students.build import build_student, student_config
from predistill.students.presets import PRESETS
from predistill.training.optim import adamw, set_lr
from predistill.training.parallel import parallelised
from predistill.training.step import MicroBatch, Objective, train_step
from predistill.training.student import Student
from predistill.world import World

KEPT, MOST, MASS_KEPT = 23, 50, 0.95
Window = Callable[[int], Iterable[MicroBatch]]


class Shape(NamedTuple):
    preset: str
    vocabulary: int
    row_len: int
    rows: int
    rounds: int
    compiled: bool


REAL = Shape("330m", 151_552, 4_096, 4, 20, compiled=True)
TOY = Shape("nano-xs", 2_048, 64, 2, 3, compiled=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--rows", type=int, help="rows a step; another number is printed and not kept")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not cuda and not args.toy:
        print("gpu.py: there is no CUDA device here; --toy runs a tiny student on the CPU.")
        return
    keep_freed_memory()  # as the program does
    shape = TOY if args.toy else REAL
    shape = shape._replace(rows=args.rows or shape.rows)
    with tempfile.TemporaryDirectory() as folder:
        content = measured(shape, World(0, 1, torch.device("cuda" if cuda else "cpu")), Path(folder))
    if shape == REAL:
        write_record("gpu", content)
    else:
        print(json.dumps(content, indent=2))


def measured(shape: Shape, world: World, folder: Path) -> dict[str, Any]:
    source, windows = windows_of(shape, world, folder)
    steps, peaks = {}, {}
    for name, window in windows.items():
        before = allocated(world, peak=False)
        steps[name] = step_of(shape, world, window, alpha=0.9 if name == "pd" else 0.0)
        for number in range(3):  # compiles, and begins to read
            steps[name](number)
        peaks[name] = round((allocated(world, peak=True) - before) / 2**30, 2)
    costs = in_turns(steps, rounds=shape.rounds)
    tokens, preset = shape.rows * shape.row_len, PRESETS[shape.preset]
    flops = training_flops(
        matrix_parameters=preset.non_embedding_parameters + shape.vocabulary * preset.hidden,
        layers=preset.layers,
        width=preset.hidden,
        row_len=shape.row_len,
    )
    device = torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu"
    peak = peak_flops(device)
    arms = {}
    for name, its in costs.items():
        rate = tokens / statistics.median(cost.wall for cost in its)
        arms[name] = {
            "wall_ratio": ratios(its, costs["lm"])["wall_ratio"],
            "tokens_a_second": round(rate, 1),
            "mfu": None if peak is None else round(rate * flops / peak, 4),
            "peak_gib": peaks[name],
        }
    return {"device": device, **shape._asdict(), "targets": source, "flops_a_token": flops, "arms": arms}


def step_of(shape: Shape, world: World, window: Window, *, alpha: float) -> Callable[[int], None]:
    config = student_config(shape.preset, vocab_size=shape.vocabulary, row_len=shape.row_len, end_id=0)
    model = build_student(config, seed=0, device=world.device).train()
    student = Student(model, bf16=True)
    student = parallelised(student, world, bf16=True, compiled=shape.compiled)
    optimizer = adamw(model, betas=(0.9, 0.95), weight_decay=0.1)
    set_lr(optimizer, 1e-4)
    objective = Objective(KLD(), Static(), Renormalise(), All())

    def step(number: int) -> None:
        train_step(student, optimizer, window(number), objective=objective, alpha=alpha, clip=1.0, world=world)
        if world.device.type == "cuda":
            torch.cuda.synchronize()

    return step


def windows_of(shape: Shape, world: World, folder: Path) -> tuple[str, dict[str, Window]]:
    """("store" or "memory", what LM and PD read)."""
    try:
        from arms import recipe_of
        from invented import invented_corpus, invented_store

        from predistill.stages.batches import Batches
        from predistill.stages.inputs import open_inputs
    except ImportError:
        return "memory", {"lm": from_memory(shape, world, taught=False), "pd": from_memory(shape, world, taught=True)}
    corpus = invented_corpus(folder, vocabulary=shape.vocabulary, rows=4 * shape.rows, row_len=shape.row_len)
    store = invented_store(folder / "store", corpus, kept=KEPT, most=MOST)
    cut = {"kind": "top_p_k", "p": MASS_KEPT, "k": MOST}
    windows = {}
    for name, its in (("lm", None), ("pd", store)):
        recipe = recipe_of(corpus, student=shape.preset, batch_rows=shape.rows, store=its, truncation=cut)
        windows[name] = Batches(recipe, open_inputs(recipe), world).window
    return "store", windows


def from_memory(shape: Shape, world: World, *, taught: bool) -> Window:
    """One batch of random tokens and targets, copied to the device in every step."""
    positions, made = shape.rows * shape.row_len, torch.Generator().manual_seed(0)
    ids_BT1 = torch.randint(shape.vocabulary, (shape.rows, shape.row_len + 1), generator=made)
    length_N = torch.empty(positions).geometric_(1 / KEPT, generator=made).clamp_(max=MOST).long()
    kept_NK = torch.arange(MOST) < length_N[:, None]
    first_N1 = torch.randint(shape.vocabulary, (positions, 1), generator=made)
    ids_NK = (first_N1 + torch.arange(MOST) * (shape.vocabulary // MOST)) % shape.vocabulary
    logprob_NK = (
        torch.empty(positions, MOST).exponential_(0.5, generator=made).neg_().masked_fill_(~kept_NK, -torch.inf)
    )
    logprob_NK = logprob_NK.log_softmax(dim=1) + torch.tensor(MASS_KEPT).log()
    rest_N = torch.full((positions,), 1 - MASS_KEPT).log()
    targets = SparseTargets(ids_NK.masked_fill(~kept_NK, -1), logprob_NK, log_rest_N=rest_N)

    def window(_: int) -> Iterable[MicroBatch]:
        own = ids_BT1.to(world.device)
        yield MicroBatch(own, own[:, 1:].contiguous(), targets.to(world.device) if taught else None)

    return window


def allocated(world: World, *, peak: bool) -> int:
    """Bytes on the device: now, or the most since the last question for now. A CPU does not tell."""
    if world.device.type != "cuda":
        return 0
    if peak:
        return torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


if __name__ == "__main__":
    main()
