"""predistill evaluate: what a student is worth; the record goes into the run, section by section."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from predistill.corpus import Corpus
from predistill.errors import RecipeError, RunError
from predistill.evaluation.copying import measure_copying
from predistill.evaluation.heldout import measure_heldout
from predistill.files import write_atomic
from predistill.runs import EVALUATION, Run, command_line, read_json, write_json
from predistill.stages.asking import Asking
from predistill.stages.generate import continue_text, exported_model
from predistill.stages.inputs import pick_device
from predistill.students.build import load_model, load_tokenizer
from predistill.students.card import made_here, model_card
from predistill.teachers.load import load_teacher, teacher_name

__all__ = ["evaluate"]

PROMPTS = ("The", "他", "")  # empty: the start of a document
SAMPLE_TOKENS = 80

HELDOUT = "heldout"

OnProgress = Callable[[int, int, str], None]


def evaluate(
    run_or_model: str | Path,
    *,
    tasks: str = "heldout",
    data: str | Path | None = None,
    corpus: str | Path | None = None,
    teacher: str | Path | None = None,
    baseline: str | Path | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Measure a finished run, a model directory or a .gguf file. The record is written to the run's evaluation.json, of
    a model that is no run to `out` (None: nowhere); what is not measured now is kept there.

    `tasks` names, with commas between them: "heldout", suites and tasks. For the held-out suite `corpus` (default: all
    of the run's) gives the rows, and `teacher` the model to compare with; for tasks `data` is the folder of their files
    (None: the Hub), and `baseline` a run that was asked the same. `limit`: rows of each corpus, and of each task.
    `on_progress(rows done, rows, what)`.
    """
    if limit is not None and limit < 1:
        raise RecipeError(f"--limit {limit}: give at least 1 row.")
    path = Path(run_or_model)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    others = ",".join(name for name in names if name != HELDOUT)
    _check_used(others, data=data, corpus=corpus, teacher=teacher, baseline=baseline, heldout=HELDOUT in names)
    run = Run(path) if (path / "recipe.yaml").exists() else None
    file = _record_file(run, None if out is None else Path(out))
    corpora, unmeasured = _corpora(path, run, corpus) if HELDOUT in names else ({}, [])
    asking = None
    if others or not corpora:
        asking = Asking.of(
            others,
            data=None if data is None else Path(data),
            limit=limit,
            baseline=None if baseline is None else Path(baseline),
        )
    model_path = exported_model(path)
    model = load_model(model_path, device=pick_device()).eval()
    record: dict[str, Any] = {} if file is None else read_json(file) or {}

    def keep(**sections: Any) -> None:
        record.update(sections)
        if file is not None:
            write_json(file, record)
        if run is not None:
            write_atomic(run.model_path / "README.md", model_card(run.recipe, run.environment, record).encode())

    if corpora:
        measured = _heldout(
            path,
            model,
            load_tokenizer(model_path),
            corpora,
            teacher=None if teacher is None else Path(teacher),
            limit=limit,
            on_progress=on_progress,
        )
        keep(**measured, unmeasured=unmeasured)
    if asking is not None:
        section = asking.measure(
            model,
            load_tokenizer(model_path),
            weights=model_path,
            opens_with=model.config.eos_token_id if run is not None or made_here(model_path) else None,
            known=record.get("tasks", {}),
            keep=lambda section: keep(tasks=section),
            on_progress=on_progress,
        )
        keep(tasks=section)
    return record


def _record_file(run: Run | None, out: Path | None) -> Path | None:
    """Where the record goes. Raises RunError for a place that cannot hold it."""
    if run is not None:
        if out is not None:
            raise RecipeError(f"--out {out}: is for a model that is no run; a run's record is its evaluation.json.")
        return run.path / EVALUATION
    if out is not None and not out.parent.is_dir():
        raise RunError(f"{out.parent}: no such directory. Make it, or name another --out.")
    return out


def _check_used(tasks: str, *, heldout: bool, **given: str | Path | None) -> None:
    """Options of what is not measured would be left unread."""
    for name in ("corpus", "teacher") if not heldout else ():
        if given[name] is not None:
            raise RecipeError(f"--{name} is for the held-out suite. Add heldout to --tasks.")
    for name in ("data", "baseline") if not tasks else ():
        if given[name] is not None:
            raise RecipeError(f"--{name} is for tasks. Name some with --tasks, such as paper8.")


def _heldout(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpora: Mapping[str, Corpus],
    *,
    teacher: Path | None,
    limit: int | None,
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    """The held-out suite: its sections of evaluation.json."""
    first, words = next(iter(corpora.values())), model.get_output_embeddings().weight.shape[0]
    for corpus in corpora.values():
        if words < corpus.vocab_size:
            raise RunError(
                f"{path}: has {words:,} words, the corpus {corpus.vocab_size:,}. Pass a --corpus of its own tokenizer."
            )
    teacher_model = None
    if teacher is not None:
        largest = max(corpus.vocab_size for corpus in corpora.values())
        teacher_model = load_teacher(teacher, vocab_size=largest, device=model.device, dtype=torch.float32)
    records: dict[str, Any] = {}
    rows = {name: min(len(corpus), limit or len(corpus)) for name, corpus in corpora.items()}
    before = 0
    for name, corpus in corpora.items():
        measured = measure_heldout(
            model,
            corpus,
            teacher=teacher_model,
            rows=limit,
            on_progress=_after(before, sum(rows.values()), name, on_progress),
        )
        if not measured.tokens:
            raise RunError(f"{corpus.path}: no label counts in its first {rows[name]:,} held-out rows. Measure more.")
        stats = corpus.split_stats
        records[name] = {
            "corpus": name,
            **measured.record(
                bytes_per_token=None if corpus.instruct else stats["bytes"] / stats["tokens"],  # of responses not known
                teacher=None if teacher is None else teacher_name(teacher),
            ),
        }
        before += rows[name]
    return {
        "command": command_line(),
        "heldout": next(iter(records.values())),
        "corpora": records,
        "copying": measure_copying(model, first),
        "samples": [
            {"prompt": prompt, "text": continue_text(model, tokenizer, prompt, tokens=SAMPLE_TOKENS)}
            for prompt in PROMPTS
        ],
    }


def _corpora(path: Path, run: Run | None, corpus: str | Path | None) -> tuple[dict[str, Corpus], list[str]]:
    """The held-out splits to measure, by name: the given corpus', else those of all the run's; and the names of those
    that have no row, of which the first must not be one."""
    if corpus is not None:
        paths = [Path(corpus)]
    elif run is not None:
        named = [entry["path"] for entry in run.recipe["corpus"]] + list(run.recipe.get("heldout") or ())
        paths = list(dict.fromkeys(Path(name) for name in named))
    else:
        raise RunError(f"{path}: a model alone does not name its text. Pass --corpus.")
    opened = {name: Corpus(found, split="held_out") for name, found in zip(_names(paths), paths, strict=True)}
    first = next(iter(opened.values()))
    if len(first) == 0:
        raise RunError(f"{first.path}: its held-out split has no whole row. Prepare it with a larger --held-out.")
    measured = {name: found for name, found in opened.items() if len(found)}
    return measured, [name for name in opened if name not in measured]


def _names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path; as many parts as tell them apart where two end alike."""
    parts = [path.absolute().parts for path in paths]
    for count in range(1, max(map(len, parts))):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _after(before: int, total: int, name: str, on_progress: OnProgress | None) -> Callable[[int, int], None] | None:
    """Progress of one corpus as that of all: `before` rows are done."""
    return None if on_progress is None else lambda done, _: on_progress(before + done, total, name)
