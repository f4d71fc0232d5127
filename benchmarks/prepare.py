"""How fast `prepare` is per core, and whether its memory stays flat at ten times the corpus, on real English text.

    python benchmarks/prepare.py

Reads $PREDISTILL_DATA (default ../shared/data), writes benchmarks/results/prepare.json. The larger corpus is all the
English text of the data, the smaller every tenth document of it. Each run is a fresh process: its CPU seconds are of
all its processes together, its memory the highest sum of their resident sets, looked at every 20 ms. Both corpora get
the same 4k BPE; a third run trains that tokenizer, whose memory is bounded by its 20 MB sample.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
from record import write_record

from predistill.corpus.text import texts

REPOSITORY = Path(__file__).parents[1]
DATA = Path(os.environ.get("PREDISTILL_DATA", REPOSITORY.parent / "shared" / "data"))
SOURCES = [
    DATA / "corpora" / f"en_{name}.jsonl.zst" for name in ("wiki", "books", "textbooks", "factbook", "tinystories")
]
VOCAB_SIZE = 4096
PREPARE = "import json, sys; from predistill.stages.prepare import prepare; prepare(**json.loads(sys.argv[1]))"
CPU_SECONDS = "import resource as r; print(sum(sum(r.getrusage(w)[:2]) for w in (r.RUSAGE_SELF, r.RUSAGE_CHILDREN)))"


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        small, large = folder / "small.jsonl", folder / "large.jsonl"
        small_bytes = write_jsonl(small, islice(texts(SOURCES), 0, None, 10))
        large_bytes = write_jsonl(large, texts(SOURCES))
        training = watched(large, large_bytes, folder / "trained", train_tokenizer=VOCAB_SIZE)
        tokenizer = str(folder / "trained")
        runs = {
            "one": watched(small, small_bytes, folder / "small", tokenizer=tokenizer),
            "ten": watched(large, large_bytes, folder / "large", tokenizer=tokenizer),
        }
    write_record(
        "prepare",
        {
            "vocab_size": VOCAB_SIZE,
            "runs": {**runs, "ten_training_the_tokenizer": training},
            "memory_ratio": round(runs["ten"]["peak_mb"] / runs["one"]["peak_mb"], 3),
        },
    )


def write_jsonl(path: Path, documents: Iterable[bytes]) -> int:
    """The bytes of text written, one document a line."""
    text_bytes = 0
    with path.open("w", encoding="utf-8") as file:
        for text in documents:
            file.write(json.dumps({"text": text.decode()}, ensure_ascii=False) + "\n")
            text_bytes += len(text)
    return text_bytes


def watched(source: Path, text_bytes: int, out: Path, **settings: Any) -> dict[str, float]:
    """Run `prepare` in a process of its own and say what it took."""
    arguments = json.dumps({"sources": str(source), "out": str(out), **settings})
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", f"{PREPARE}; {CPU_SECONDS}", arguments], stdout=subprocess.PIPE, text=True
    )
    peak_bytes = 0
    while process.poll() is None:
        peak_bytes = max(peak_bytes, resident_bytes(psutil.Process(process.pid)))
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    cpu_seconds = float(process.communicate()[0])
    return {
        "text_mb": round(text_bytes / 1e6, 2),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "mb_per_cpu_second": round(text_bytes / 1e6 / cpu_seconds, 3),
        "peak_mb": round(peak_bytes / 1e6, 1),
    }


def resident_bytes(process: psutil.Process) -> int:
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


if __name__ == "__main__":
    main()
