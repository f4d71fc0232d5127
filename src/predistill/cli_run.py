"""The verbs about one run or several, train, evaluate, generate, footprint, report and runs, and about the machine:
doctor. Heavy imports stand inside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from predistill.display import shown_training
from predistill.pace import Cost
from predistill.terminal import progress, show, table

__all__ = ["Json", "Overwrite", "doctor", "evaluate", "footprint", "generate", "report", "runs", "train"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of words.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/nano/pd.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default: runs/NAME.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would take, and stop.")] = False,
    ranks: Annotated[int | None, typer.Option(min=1, help="With --dry-run: on so many accelerators ...")] = None,
    accelerator: Annotated[str, typer.Option(help="... of this kind ...")] = "h100",
    mfu: Annotated[float, typer.Option(min=0.01, max=1, help="... at this share of their peak.")] = 0.4,
    track: Annotated[
        list[str] | None, typer.Option(help="Show it in tensorboard, trackio or wandb too; more than once for several.")
    ] = None,
    force_resume: Annotated[
        bool, typer.Option("--force-resume", help="Go on though the recipe, a corpus or a store has changed.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """A student from a recipe. Run it again after a stop: it goes on where it was."""
    from predistill.recipe import read_recipe
    from predistill.stages.dry_run import dry_run as dry_sizes
    from predistill.stages.dry_run import words
    from predistill.stages.train import train as run
    from predistill.training.trackers import tracked

    chosen = read_recipe(recipe, overrides or [])
    out = out or Path("runs") / chosen.name
    if dry_run:
        facts = dry_sizes(chosen, ranks=ranks, accelerator=accelerator, mfu=mfu)
        show(facts, as_json, words(facts))
        return
    first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes one speaks for all
    with (
        shown_training(chosen.name, steps=chosen.steps, cost=lambda: _cost(out), quiet=as_json or not first) as shown,
        tracked(track or (), out, config=chosen.resolved()) as log,
    ):

        def on_record(record: Any) -> None:
            shown(record)
            log(record)

        finished = run(chosen, out=out, overwrite=overwrite, force=force_resume, on_record=on_record)
    if first:
        facts = {"run": str(finished.path), **(finished.done or {})}
        show(facts, as_json, table(facts))


def evaluate(
    run_or_model: Annotated[Path, typer.Argument(help="A finished run, or a model directory.")],
    tasks: Annotated[
        str,
        typer.Option(help="heldout, paper8, wide13 or tasks' names, with commas; mmlu:5 gives five examples."),
    ] = "heldout",
    data: Annotated[
        Path | None, typer.Option(help="Folder of the tasks' files (.jsonl, .gz, .zst); default: the Hub.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Corpus whose held-out rows to use; default: all of the run's.")
    ] = None,
    teacher: Annotated[Path | None, typer.Option(help="Teacher to compare with, over its whole vocabulary.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="Run that was asked the same tasks, to compare with.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many rows of each corpus and of each task.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="File for the record of a model that is no run; a run has its evaluation.json.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Held-out loss, calibration, distance to the teacher, in-context copying; and tasks; --json prints all of it."""
    from predistill.stages.asking import task_words
    from predistill.stages.evaluate import evaluate as run

    with progress("evaluate", unit="rows", quiet=as_json) as advance:
        record = run(
            run_or_model,
            tasks=tasks,
            data=data,
            corpus=corpus,
            teacher=teacher,
            baseline=baseline,
            limit=limit,
            out=out,
            on_progress=advance,
        )
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    blocks = _heldout_blocks(record) if "heldout" in names else []
    others = ",".join(name for name in names if name != "heldout")
    show(record, as_json, "\n\n".join([*blocks, *([task_words(record["tasks"], others)] if others else [])]))


def generate(
    run_or_model: Annotated[Path, typer.Argument(help="A finished run, or a model directory.")],
    prompt: Annotated[str, typer.Argument(help="Text to go on from; empty: a new document.")] = "",
    tokens: Annotated[int, typer.Option(help="At most so many tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0: the likeliest word each time.")] = 0.8,
    seed: Annotated[int, typer.Option(help="The same seed writes the same text.")] = 0,
    as_json: Json = False,
) -> None:
    """See the student write."""
    from predistill.stages.generate import generate as run

    text = run(run_or_model, prompt, tokens=tokens, temperature=temperature, seed=seed)
    show({"prompt": prompt, "text": text}, as_json, prompt + text)


def footprint(
    models: Annotated[list[Path], typer.Argument(help="Finished runs, model directories or .gguf files.")],
    teacher: Annotated[
        Path | None, typer.Option(help="Measured like the others; students of its words draft for it.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Corpus whose held-out text to use; default: the first run's.")
    ] = None,
    out: Annotated[Path, typer.Option(help="File to write, or a directory for it.")] = Path("footprint.json"),
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(help="Tokens to write after it.")] = 64,
    rounds: Annotated[int, typer.Option(help="Turns of each model; medians are kept.")] = 5,
    limit: Annotated[int, typer.Option(help="Loss of at most so many held-out rows.")] = 64,
    dtype: Annotated[str, typer.Option(help="Precision of all models: fp32, bf16 or fp16.")] = "fp32",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """What models cost to use beside each other: latency, memory, bytes on disk, and what each is worth as a draft."""
    from predistill.stages.footprint import footprint as run
    from predistill.stages.footprint import in_words

    with progress("footprint", unit="turns", quiet=as_json) as advance:
        record = run(
            models,
            teacher=teacher,
            corpus=corpus,
            out=out,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            rounds=rounds,
            limit=limit,
            dtype=dtype,
            overwrite=overwrite,
            on_progress=advance,
        )
    show(record, as_json, in_words(record))


def report(
    paths: Annotated[list[Path], typer.Argument(help="Runs, directories of runs, a footprint.json.")],
    out: Annotated[Path | None, typer.Option(help="The page; default: report.html in the first path.")] = None,
    as_json: Json = False,
) -> None:
    """One self-contained page about runs: curves, table, store, samples."""
    from predistill.stages.report import report as run

    page = run(paths, out=out)
    show({"page": str(page)}, as_json, f"{page}")


def runs(
    path: Annotated[Path, typer.Argument(help="Directory to look in.")] = Path("runs"), as_json: Json = False
) -> None:
    """The runs below a directory, and how far each is."""
    from predistill.runs import find_runs

    found = [_run_line(run) for run in find_runs(path)]
    lines = [f"{line['run']}  {line['step']:,} of {line['steps']:,} steps  {line['state']}" for line in found]
    show({"runs": found}, as_json, "\n".join(lines) or f"{path}: no runs here. `predistill train` makes one.")


def doctor(as_json: Json = False) -> None:
    """Versions, devices, what is missing, and a second of self-checks; its output may stand in an issue."""
    from predistill.stages.doctor import doctor as run
    from predistill.stages.doctor import in_words

    facts = run()
    show(facts, as_json, in_words(facts))
    if not facts["ok"]:
        raise typer.Exit(2)


def _cost(path: Path) -> Cost | None:
    """What a token takes and the run's devices can do, where the peak of such a device is known."""
    from predistill.laws import peak_flops
    from predistill.runs import Run

    environment = Run(path).environment
    machine = environment.get("machine", {})
    peak = peak_flops(machine.get("device", ""))
    if peak is None or not environment.get("tokens"):
        return None
    return Cost(environment["flops"] / environment["tokens"], peak * machine.get("ranks", 1))


def _heldout_blocks(record: dict[str, Any]) -> list[str]:
    """What was measured of held-out text, a block a corpus, and of copying: the headline numbers."""
    blocks = [
        f"{name}\n{table({key: _headline(value) for key, value in measured.items() if key != 'corpus'})}"
        for name, measured in record["corpora"].items()
    ]
    blocks += [f"{name}\nno held-out rows: not measured" for name in record["unmeasured"]]
    copying = record["copying"]
    lines = [f"in-context copying, second copy (chance: {copying['chance_nats']:.3f} nats)"]
    for line in copying["lengths"]:
        lines.append(f"{line['length']:>5} words  {line['loss_nats']:.3f} nats  {line['accuracy']:.1%} right")
    return [*blocks, "\n".join(lines)]


def _headline(value: Any) -> Any:
    """None, which a table leaves out, for lists of bins."""
    return None if isinstance(value, list) else value


def _run_line(run: Any) -> dict[str, Any]:
    metrics, environment = run.metrics(), run.environment
    step = metrics[-1]["step"] if metrics else 0
    state = "done" if run.done else "not finished"
    return {"run": str(run.path), "step": step, "steps": environment.get("steps", 0), "state": state}
