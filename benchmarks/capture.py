"""What capturing costs beside the teacher itself: `capture`, writing its store, against the bare forward pass.

    PREDISTILL_GGUF=SmolLM2-135M-Instruct.Q4_1.gguf python benchmarks/capture.py

Writes benchmarks/results/capture.json. Bare is the backbone and the head's logits over the same batches; capture adds
top-.95-100, encoding, checksums, files and sealing. Both run in turns in one process; loading the teacher and
hashing its file count for neither. `of_bare` is the bare CPU seconds over those of capture. Two teachers: the
embedded one (V 2,048, on the embedded sample) and SmolLM2 135M (V 49,152, on text of $PREDISTILL_DATA), left out where
$PREDISTILL_GGUF names none. `two_workers`: two one-thread processes capture one store together, against two that run
the bare forward side by side over as many tokens; groups are of 1,024 tokens there, and the calibration, once a store,
is done before.
"""

from __future__ import annotations

import multiprocessing
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from corpora import gguf_teacher, nano_corpus, smollm2_corpus
from record import write_record
from transformers import PreTrainedModel
from turns import paired

from predistill.assets import teacher_path
from predistill.corpus import Corpus
from predistill.memory import keep_freed_memory
from predistill.objective import TopPK
from predistill.stages import capture as module
from predistill.stages.capture import capture, group_rows
from predistill.stages.inputs import pick_device
from predistill.store import Store
from predistill.store.calibration import Calibration
from predistill.students.forward import head_of, hidden_states
from predistill.teachers.load import load_teacher, teacher_facts


def main() -> None:
    keep_freed_memory()  # as the program does
    gguf = gguf_teacher()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpus = nano_corpus(folder / "nano", text_bytes=320_000)
        cases = {"embedded teacher, V 2,048": measured(teacher_path(), corpus, folder / "nano-store", rounds=5)}
        if gguf is not None:
            corpus = smollm2_corpus(folder / "smollm2", text_bytes=10_000)
            cases["SmolLM2 135M, V 49,152"] = measured(gguf, corpus, folder / "smollm2-store", rounds=4)
            corpus = smollm2_corpus(folder / "smollm2-two", text_bytes=70_000)
            cases["SmolLM2 135M, V 49,152"]["two_workers"] = two_workers(gguf, corpus, folder / "two-store", rounds=3)
    note = {} if gguf is not None else {"note": "SmolLM2 135M left out: $PREDISTILL_GGUF names no file."}
    write_record("capture", {"threads": torch.get_num_threads(), "cases": cases, **note})


def two_workers(teacher: Path, corpus: Corpus, out: Path, *, rounds: int) -> dict[str, Any]:
    """Tokens a second of two processes of one thread, bare and capturing, in turns."""
    rates: dict[str, list[float]] = {"bare": [], "capture": []}
    for number in range(rounds):
        for kind in ("bare", "capture") if number % 2 else ("capture", "bare"):
            shutil.rmtree(out, ignore_errors=True)
            rates[kind].append(side_by_side(kind, teacher, corpus, out))
    bare, captured = (statistics.median(rates[kind]) for kind in ("bare", "capture"))
    return {"rounds": rounds, "bare_tokens_a_second": round(bare, 1), "tokens_a_second": round(captured, 1),
            "of_bare": round(captured / bare, 3)}  # fmt: skip


def side_by_side(kind: str, teacher: Path, corpus: Corpus, out: Path) -> float:
    context = multiprocessing.get_context("spawn")
    ready, calibrated = context.Barrier(3), context.Lock()
    workers = [
        context.Process(target=one_of_two, args=(kind, rank, teacher, corpus.path, out, ready, calibrated))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    ready.wait()
    began = time.perf_counter()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    return len(corpus) * corpus.row_len / (time.perf_counter() - began)


def one_of_two(kind: str, rank: int, teacher: Path, corpus_path: Path, out: Path, ready: Any, calibrated: Any) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    corpus = Corpus(corpus_path)
    model = load_teacher(teacher, vocab_size=corpus.vocab_size, device=pick_device(), dtype=torch.float32)
    module.GROUP_TOKENS = 1024
    if kind == "bare":
        ready.wait()
        run_bare(model, corpus, np.arange(len(corpus))[rank::2])
        return
    facts = teacher_facts(teacher)
    calibrate = Calibration.of

    def of(out: Path, sample: Any, *, vocabulary: int) -> Calibration:
        with calibrated:
            found = calibrate(out, sample, vocabulary=vocabulary)
        sample.__self__._kept.clear()  # else the groups of the calibration would not be run again
        ready.wait()
        return found

    with (
        patch.object(module, "load_teacher", lambda *_, **__: model),
        patch.object(module, "teacher_facts", lambda _: facts),
        patch.object(Calibration, "of", of),
    ):
        capture(teacher, corpus=corpus.path, out=out, truncation=TopPK(p=0.95, k=100), threads=1)


def run_bare(model: PreTrainedModel, corpus: Corpus, rows: npt.NDArray[np.int64]) -> None:
    head, size = head_of(model), group_rows(corpus.row_len)
    with torch.inference_mode():
        for start in range(0, len(rows), size):
            ids, _ = corpus.rows(rows[start : start + size])
            for hidden_TD in hidden_states(model, torch.from_numpy(ids[:, :-1]), end_id=None):
                head.logits(hidden_TD)


def measured(teacher: Path, corpus: Corpus, out: Path, *, rounds: int) -> dict[str, Any]:
    model = load_teacher(teacher, vocab_size=corpus.vocab_size, device=pick_device(), dtype=torch.float32)
    facts = teacher_facts(teacher)

    def bare(_: int) -> None:
        run_bare(model, corpus, np.arange(len(corpus)))

    def captured(_: int) -> None:
        shutil.rmtree(out, ignore_errors=True)
        with patch.multiple(
            "predistill.stages.capture", load_teacher=lambda *_, **__: model, teacher_facts=lambda _: facts
        ):
            capture(teacher, corpus=corpus.path, out=out, truncation=TopPK(p=0.95, k=100))

    result = paired(bare, captured, rounds=rounds)
    totals = Store(out).totals
    return {
        "teacher": teacher.name,
        "rows": totals["rows"],
        "entries_a_position": round(totals["entries"] / totals["positions"], 2),
        "of_bare": round(1 / result["cpu_ratio"], 3),
        "of_bare_wall": round(1 / result["wall_ratio"], 3),
        "tokens_a_cpu_second": round(totals["positions"] / result["cpu_seconds"], 1),
        "tokens_a_second": round(totals["positions"] / result["seconds"], 1),
        **result,
    }


if __name__ == "__main__":
    main()
