"""What a run would take, before anything of it exists: `train --dry-run`.

What lies on the disk is opened and checked as training would. For a corpus that is not there yet the recipe says what
it will be (`corpus[].expects`), and its store is estimated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from predistill.corpus import Corpus
from predistill.errors import RecipeError, did_you_mean
from predistill.laws import PEAK_FLOPS, days, peak_flops, store_bytes_per_token
from predistill.objective.layer import CHUNK_BYTES, CHUNK_TOKENS
from predistill.recipe import CorpusEntry, LiveTeaching, Recipe
from predistill.stages.inputs import check_expected, matching_store, open_inputs, start_config
from predistill.stages.sizes import batch_rows, run_sizes
from predistill.store.layout import MANIFEST
from predistill.store.place import open_place
from predistill.students.build import student_config
from predistill.teachers.load import teacher_config

__all__ = ["ACCELERATORS", "dry_run", "words"]

ACCELERATORS = (1, 8, 64, 512)


class _Part(NamedTuple):
    """A corpus of the mixture and its store, as far as costs go; `assumed`: what the recipe says of it, not what lies
    there."""

    vocab_size: int
    row_len: int
    end_id: int
    tokens: int
    weight: float
    taught: bool
    store_bytes: int | None  # None: no store, or one to be estimated
    teacher_parameters: int | None
    assumed: bool


def dry_run(recipe: Recipe, *, ranks: int | None = None, accelerator: str = "h100", mfu: float = 0.4) -> dict[str, Any]:
    """The resolved sizes and costs of `recipe` on `ranks` accelerators (None: as many as hold one copy), flat; "recipe"
    is the recipe itself. docs/scale.md says what each name means. Days are at a share `mfu` of the accelerator's peak.

    Raises what training would for what is there or cannot be; RecipeError for an accelerator that is not known.
    """
    peak = peak_flops(accelerator)
    if peak is None:
        hint = did_you_mean(accelerator.lower(), PEAK_FLOPS) or "."
        raise RecipeError(f'--accelerator is "{accelerator}"{hint} One of {", ".join(PEAK_FLOPS)}.')
    ranks = ranks or recipe.shard or 1
    parts = _parts(recipe)
    first = parts[0]
    chunk = max(CHUNK_TOKENS, 1 << (CHUNK_BYTES // (4 * first.vocab_size)).bit_length() - 1)
    teacher = None
    if isinstance(recipe.teacher, LiveTeaching):
        teacher = teacher_config(recipe.teacher.model, vocab_size=first.vocab_size)
    if recipe.student.from_ is not None and Path(recipe.student.from_).exists():
        config = start_config(recipe.student.from_)
    else:
        config = student_config(
            recipe.student.preset, vocab_size=first.vocab_size, row_len=first.row_len, end_id=first.end_id
        )
    sizes = run_sizes(
        recipe,
        config=config,
        row_len=first.row_len,
        corpus_tokens=[part.tokens for part in parts],
        teacher=teacher,
        ranks=ranks,
        chunk_tokens=chunk,
    )
    memory = sizes.pop("memory_bytes")
    counts = sorted({*ACCELERATORS, ranks})
    store = _store(recipe, parts)
    tokens_per_s = peak * mfu * sizes["tokens"] / sizes["flops"]
    stored_per_s = None
    if store["store_bytes_per_token"] is not None:
        taught_share = sum(part.weight for part in parts if part.taught) / sum(part.weight for part in parts)
        stored_per_s = tokens_per_s * taught_share * store["store_bytes_per_token"]
    return {
        "name": recipe.name,
        "assumed": any(part.assumed for part in parts),
        **sizes,
        "ranks": ranks,
        "memory_bytes": sum(memory.values()),
        **{f"memory_{name}_bytes": count for name, count in memory.items()},
        **store,
        **_logged(recipe, parts),
        "accelerator": accelerator,
        "peak_flops": peak,
        "mfu": mfu,
        "rank_tokens_per_s": tokens_per_s,
        "rank_rows_per_s": tokens_per_s / first.row_len,
        "rank_store_bytes_per_s": stored_per_s,
        "store_bytes_per_s": None if stored_per_s is None else ranks * stored_per_s,
        **{f"days_{n}": days(sizes["flops"], accelerators=n, peak=peak, mfu=mfu) for n in counts},
        **{
            f"capture_days_{n}": days(store["capture_flops"], accelerators=n, peak=peak, mfu=mfu)
            for n in counts
            if store["capture_flops"] is not None
        },
        "recipe": recipe.resolved(),
    }


def words(facts: dict[str, Any]) -> str:
    """What `dry_run` found, for people."""
    parameters = f"{facts['parameters']:,}, {facts['non_embedding_parameters']:,} of them in the blocks"
    if facts["active_parameters"] != facts["parameters"]:
        parameters += f", {facts['active_parameters']:,} at work for a token"
    tokens = f"{_count(facts['tokens'])} in {facts['steps']:,} steps of {facts['batch_tokens']:,}"
    memory = [
        f"{name.removeprefix('memory_').removesuffix('_bytes')} {_quantity(value, 'B')}"
        for name, value in facts.items()
        if name.startswith("memory_") and name != "memory_bytes" and value
    ]
    lines = [
        ("parameters", parameters),
        ("tokens", f"{tokens}: {facts['epochs']:.3g} times the corpus"),
        ("flops", f"{facts['flops']:.3g}"),
        ("memory bytes", f"{_quantity(facts['memory_bytes'], 'B')} a rank, of {facts['ranks']}: {', '.join(memory)}"),
    ]
    if facts["store_bytes"] is None:
        lines.append(("store bytes", "not estimated: nothing was measured for this truncation"))
    elif facts["store_bytes"]:
        how = "estimated" if facts["store_estimated"] else "measured"
        size = _quantity(facts["store_bytes"], "B")
        lines.append(("store bytes", f"{size}, {facts['store_bytes_per_token']:.3g} a token, {how}"))
    if facts["log_bytes"]:
        lines.append(("logged bytes", f"{_quantity(facts['log_bytes'], 'B')}, estimated"))
    if facts["capture_flops"] is not None:
        teacher = f"a teacher of {_count(facts['teacher_parameters'])} parameters"
        lines.append(("capture flops", f"{facts['capture_flops']:.3g}, {teacher}"))
    read = facts["rank_store_bytes_per_s"]
    all_read = f" ({_quantity(facts['store_bytes_per_s'], 'B')} by all ranks)" if facts["ranks"] > 1 and read else ""
    reading = f", {_quantity(read, 'B')} of the store{all_read}" if read else ""
    rows = f"{facts['rank_rows_per_s']:,.3g} rows"
    lines.append(("a rank's second", f"{facts['rank_tokens_per_s']:,.0f} tokens, {rows}{reading}"))
    counts = [int(name.removeprefix("days_")) for name in facts if name.startswith("days_")]
    speed = f"{facts['accelerator']}, {facts['mfu']:.0%} of {_quantity(facts['peak_flops'], 'FLOP/s')}"
    lines.append((speed, "".join(f"{count:>10,}" for count in counts)))
    for name, title in (("days_", "days, training"), ("capture_days_", "days, capture")):
        if f"{name}{counts[0]}" in facts:
            lines.append((title, "".join(f"{facts[f'{name}{count}']:>10.3g}" for count in counts)))
    width = max(len(title) for title, _ in lines)
    note = ["what is not there yet is assumed as corpus[].expects says"] if facts["assumed"] else []
    return "\n".join([facts["name"], *note, *(f"{title:<{width}}  {value}" for title, value in lines)])


def _parts(recipe: Recipe) -> list[_Part]:
    """Every corpus and store: opened and checked where they are there, else as expected."""
    stored = recipe.teacher.kind == "stored"
    missing = [entry.expects is not None and not _is_there(entry, stored=stored) for entry in recipe.corpus]
    if not any(missing):
        open_inputs(recipe)  # all of its checks
    parts = [_part(entry, recipe) for entry in recipe.corpus]
    for part, entry in zip(parts, recipe.corpus, strict=True):
        for what, value, first in (
            ("row length", part.row_len, parts[0].row_len),
            ("vocabulary", part.vocab_size, parts[0].vocab_size),
        ):
            if value != first:
                raise RecipeError(
                    f"{entry.path} and {recipe.corpus[0].path} do not mix: {what} {value} and {first}. "
                    "Prepare both with the same tokenizer, --row-len and --document-mask."
                )
    return parts


def _is_there(entry: CorpusEntry, *, stored: bool) -> bool:
    corpus = (Path(entry.path) / "manifest.json").exists()
    return corpus and (not stored or entry.store is None or _store_is_there(entry.store))


def _store_is_there(path: str) -> bool:
    try:
        return open_place(path).exists(MANIFEST)
    except OSError:
        return False


def _part(entry: CorpusEntry, recipe: Recipe) -> _Part:
    taught = recipe.teacher.kind == "stored" and entry.store is not None
    expects = entry.expects
    parameters = expects.teacher_parameters if expects is not None and taught else None
    if expects is not None and not (Path(entry.path) / "manifest.json").exists():
        return _Part(
            expects.vocab_size, expects.row_len, 0, expects.tokens, entry.weight, taught, None, parameters, True
        )
    corpus = Corpus(entry.path)
    check_expected(entry, corpus)
    store_bytes, assumed = None, False
    if taught:
        assert entry.store is not None
        assumed = expects is not None and not _store_is_there(entry.store)
        if not assumed:
            store_bytes = matching_store(entry.store, corpus, recipe).totals["bytes"]
    tokens = len(corpus) * corpus.row_len
    return _Part(
        corpus.vocab_size,
        corpus.row_len,
        corpus.end_id,
        tokens,
        entry.weight,
        taught,
        store_bytes,
        parameters,
        assumed,
    )


def _store(recipe: Recipe, parts: list[_Part]) -> dict[str, Any]:
    """Bytes of the stores, estimated where one is not there, and what it takes to capture them: a forward pass of the
    teacher over each corpus, 2 FLOPs a parameter and token."""
    taught = [part for part in parts if part.taught]
    estimate = store_bytes_per_token(recipe.truncation)
    sizes = [
        part.store_bytes
        if part.store_bytes is not None
        else (None if estimate is None else round(estimate * part.tokens))
        for part in taught
    ]
    total = None if any(size is None for size in sizes) else sum(size for size in sizes if size is not None)
    parameters = [part.teacher_parameters for part in taught]
    known = bool(taught) and all(count is not None for count in parameters)
    facts: dict[str, Any] = {
        "store_bytes": total,
        "store_bytes_per_token": total / sum(part.tokens for part in taught) if taught and total is not None else None,
        "store_estimated": any(part.store_bytes is None for part in taught),
        "capture_flops": sum(2 * (part.teacher_parameters or 0) * part.tokens for part in taught) if known else None,
    }
    return facts | ({"teacher_parameters": max(count or 0 for count in parameters)} if known else {})


def _logged(recipe: Recipe, parts: list[_Part]) -> dict[str, Any]:
    """Bytes of the store that the run writes itself: every row of the slice once."""
    log = recipe.log_targets
    if log is None:
        return {"log_bytes": 0}
    row_len = parts[0].row_len
    rows = min(len(recipe.logged_steps) * batch_rows(recipe, row_len), parts[0].tokens // row_len)
    estimate = store_bytes_per_token(log.truncation)
    return {"log_bytes": None if estimate is None else round(min(rows, log.rows or rows) * row_len * estimate)}


def _count(number: float) -> str:
    """1,234,567 -> 1.23M, in the units of a recipe."""
    value, prefix = _scaled(number, "KMBT")
    return f"{value:.3g}{prefix}"


def _quantity(number: float, unit: str) -> str:
    """1,234,567 -> 1.23 MB."""
    value, prefix = _scaled(number, "kMGTP")
    return f"{value:.3g} {prefix}{unit}"


def _scaled(number: float, prefixes: str) -> tuple[float, str]:
    power = max((i for i in range(1, len(prefixes) + 1) if number >= 1000**i), default=0)
    return number / 1000**power, prefixes[power - 1] if power else ""
