"""predistill footprint: what models cost to use beside each other, a teacher among them, and what each is worth."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predistill.corpus import Corpus
from predistill.errors import RecipeError, RunError, did_you_mean
from predistill.runs import Run, command_line, write_json
from predistill.stages.apart import Apart
from predistill.stages.bench import Bench
from predistill.stages.generate import exported_model
from predistill.stages.inputs import machine, versions
from predistill.teachers.load import DTYPES, teacher_name

__all__ = ["footprint", "in_words"]

BATCHES = (1, 8)

Turn = dict[int, dict[str, float]]  # a batch -> seconds


@dataclass(frozen=True)
class Subject:
    """A model that is measured; `model`: the directory or the .gguf file that holds its weights."""

    path: Path
    model: Path
    name: str
    kind: str  # LM or PD, as the run that made it; model, where none did
    corpus: Path | None

    @classmethod
    def of(cls, path: Path) -> Subject:
        """Raises RunError where there is no model."""
        if not path.exists():
            raise RunError(f"{path}: no such model. Name a finished run, a model directory or a .gguf file.")
        model = exported_model(path)
        folder = model.parent if model.name == "model" else path
        if not (folder / "recipe.yaml").exists():
            return cls(path, model, teacher_name(path), "model", None)
        run = Run(folder)
        kind = "LM" if run.recipe["teacher"]["kind"] == "none" else "PD"
        return cls(path, model, run.name, kind, Path(run.recipe["corpus"][0]["path"]))

    @property
    def bytes_on_disk(self) -> int:
        """Weights, configuration and tokenizer."""
        files = [self.model] if self.model.is_file() else [path for path in self.model.iterdir() if path.is_file()]
        return sum(path.stat().st_size for path in files)


def footprint(
    models: Sequence[str | Path],
    *,
    teacher: str | Path | None = None,
    corpus: str | Path | None = None,
    out: str | Path = "footprint.json",
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    rounds: int = 5,
    limit: int = 64,
    dtype: str = "fp32",
    overwrite: bool = False,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Measure models, and `teacher` as one of them, each in a process of its own; the record is written to `out`.

    After one uncounted round, each of `rounds` rounds gives every model a turn of one prompt and of eight; the model
    that begins moves on, so that whatever disturbs the machine disturbs all alike, and medians are kept. Then, on
    `limit` held-out rows of `corpus` (default: the first run's), what each says of the text, and how well it drafts for
    the teacher. `on_progress(turns done, turns, model)`.
    """
    out = Path(out) / "footprint.json" if Path(out).is_dir() else Path(out)
    _check(out, overwrite=overwrite, dtype=dtype)
    for name, number, least in (
        ("prompt-tokens", prompt_tokens, 1), ("new-tokens", new_tokens, 2), ("rounds", rounds, 1), ("limit", limit, 1)
    ):  # fmt: skip
        if number < least:
            raise RecipeError(f"--{name} {number}: give at least {least}.")
    subjects, taught = _subjects([Path(path) for path in models], None if teacher is None else Path(teacher))
    texts = [subject.corpus for subject in subjects if subject.corpus is not None]
    text = next(iter(texts), None) if corpus is None else Path(corpus)
    if text is not None and len(Corpus(text, split="held_out")) == 0:
        raise RunError(f"{text}: its held-out split has no whole row. Prepare it with a larger --held-out.")
    turns = iter(range(len(subjects) * (rounds + 3)))  # loading, an uncounted round, and the text are one each

    def begin(subject: Subject) -> None:
        if on_progress is not None:
            on_progress(next(turns), len(subjects) * (rounds + 3), subject.name)

    with ExitStack() as stack:
        benches = [
            stack.enter_context(
                Apart(
                    Bench,
                    name=str(subject.path),
                    model=subject.model,
                    corpus=text,
                    dtype=dtype,
                    prompts=max(BATCHES),
                    prompt_tokens=prompt_tokens,
                    new_tokens=new_tokens,
                )
            )
            for subject in subjects
        ]
        facts = []
        for subject, bench in zip(subjects, benches, strict=True):
            begin(subject)
            facts.append(bench.ask("facts"))
        timed: list[list[Turn]] = [[] for _ in benches]
        for number in range(rounds + 1):
            for i in _rotated(len(benches), by=number):
                begin(subjects[i])
                timed[i].append({batch: benches[i].ask("time", batch=batch) for batch in BATCHES})
        results = []
        for i, (subject, bench) in enumerate(zip(subjects, benches, strict=True)):
            begin(subject)
            drafts = taught is not None and i != taught and facts[i]["words"] == facts[taught]["words"]
            results.append(
                {
                    "name": subject.name,
                    "path": str(subject.path),
                    "kind": subject.kind,
                    "parameters": facts[i]["parameters"],
                    "bytes_on_disk": subject.bytes_on_disk,
                    "dtype": dtype,
                    **_speeds(timed[i][1:], prompt_tokens=prompt_tokens, new_tokens=new_tokens),
                    **bench.ask("memory"),
                    **bench.ask("quality", rows=limit),
                    "acceptance": bench.ask("acceptance", teacher=subjects[taught or 0].model) if drafts else None,
                }
            )
    if on_progress is not None:
        on_progress(len(subjects) * (rounds + 3), len(subjects) * (rounds + 3), "")
    record = {
        "command": command_line(),
        "machine": machine(),
        "versions": versions(),
        "threads": facts[0]["threads"],
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "rounds": rounds,
        "corpus": None if text is None else text.name,
        "teacher": None if taught is None else subjects[taught].name,
        "models": results,
    }
    write_json(out, record)
    return record


def in_words(record: dict[str, Any]) -> str:
    """A line a model, and what the columns are."""
    lines = [["", "parameters", "on disk", "memory", "first token", "decode 1", "decode 8", "bits/byte", "accepted"]]
    for model in record["models"]:
        decode = [f"{model['batches'][batch]['decode_tokens_per_second']:,.0f}/s" for batch in ("1", "8")]
        accepted = (model["acceptance"] or {}).get("rate")
        lines.append(
            [
                f"{model['name']} ({model['kind']})",
                f"{model['parameters']:,}",
                _megabytes(model["bytes_on_disk"]),
                _megabytes(model["peak_memory_bytes"]),
                f"{model['time_to_first_token_seconds'] * 1000:,.1f} ms",
                *decode,
                "-" if model["bits_per_byte"] is None else f"{model['bits_per_byte']:.3f}",
                "-" if accepted is None else f"{accepted:.0%}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(word.ljust(width) if i == 0 else word.rjust(width) for i, (word, width) in enumerate(columns))
        for columns in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    said = (
        f"{record['prompt_tokens']} tokens of a prompt and {record['new_tokens']} new ones, on "
        f"{record['machine']['device']}, {record['threads']} threads, medians of {record['rounds']} rounds. Decode: "
        "new tokens a second with 1 and 8 prompts at once."
    )
    if record["teacher"] is not None:
        said += f" Accepted: the share of proposed tokens that {record['teacher']} would have written itself."
    return "\n".join([*table, said])


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.1f} MB"


def _check(out: Path, *, overwrite: bool, dtype: str) -> None:
    if dtype not in DTYPES:
        raise RecipeError(f'--dtype is "{dtype}"{did_you_mean(dtype, DTYPES) or "."} One of {", ".join(DTYPES)}.')
    if out.exists() and not overwrite:
        raise RunError(f"{out}: is there already. Name another --out, or replace it with --overwrite.")
    if not out.parent.is_dir():
        raise RunError(f"{out.parent}: no such directory. Make it, or name another --out.")


def _subjects(models: Sequence[Path], teacher: Path | None) -> tuple[list[Subject], int | None]:
    """What is measured, each once, and which of it is the teacher."""
    subjects: dict[Path, Subject] = {}
    for path in [*models, *([] if teacher is None else [teacher])]:
        subject = Subject.of(path)
        subjects.setdefault(subject.model.resolve(), subject)
    if not subjects:
        raise RunError("No model to measure. Name a finished run, a model directory or a .gguf file.")
    taught = None if teacher is None else list(subjects).index(Subject.of(teacher).model.resolve())
    return list(subjects.values()), taught


def _rotated(count: int, *, by: int) -> list[int]:
    first = by % count
    return [*range(first, count), *range(first)]


def _speeds(turns: Sequence[Turn], *, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
    """Medians over the turns of a model, and the seconds that they are made of."""
    batches: dict[str, dict[str, Any]] = {}
    for batch in BATCHES:
        first = [turn[batch]["first_token_seconds"] for turn in turns]
        decode = [turn[batch]["decode_seconds"] for turn in turns]
        batches[str(batch)] = {
            "prefill_tokens_per_second": batch * prompt_tokens / statistics.median(first),
            "decode_tokens_per_second": batch * (new_tokens - 1) / statistics.median(decode),
            "first_token_seconds": first,
            "decode_seconds": decode,
        }
    return {"time_to_first_token_seconds": statistics.median(batches["1"]["first_token_seconds"]), "batches": batches}
