"""What capturing costs beside the teacher itself: `capture`, writing its store, against the bare forward pass.

    PREDISTILL_GGUF=SmolLM2-135M-Instruct.Q4_1.gguf python benchmarks/capture.py

Writes benchmarks/results/capture.json. Bare is the backbone and the head's logits over the same batches; capture adds
top-.95-100, encoding, checksums, files and sealing. Both run in turns in one process; loading the teacher and
hashing its file count for neither. `of_bare` is the bare CPU seconds over those of capture. Two teachers: the
embedded one (V 2,048, on the embedded sample) and SmolLM2 135M (V 49,152, on text of $PREDISTILL_DATA), left out where
$PREDISTILL_GGUF names none.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from paired import gguf_teacher, nano_corpus, paired, smollm2_corpus
from record import write_record

from predistill.assets import teacher_path
from predistill.corpus import Corpus
from predistill.memory import keep_freed_memory
from predistill.objective import TopPK
from predistill.stages.capture import capture, group_rows
from predistill.stages.inputs import pick_device
from predistill.store import Store
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
            cases["SmolLM2 135M, V 49,152"] = measured(gguf, corpus, folder / "smollm2-store", rounds=2)
    note = {} if gguf is not None else {"note": "SmolLM2 135M left out: $PREDISTILL_GGUF names no file."}
    write_record("capture", {"threads": torch.get_num_threads(), "cases": cases, **note})


def measured(teacher: Path, corpus: Corpus, out: Path, *, rounds: int) -> dict[str, Any]:
    model = load_teacher(teacher, vocab_size=corpus.vocab_size, device=pick_device(), dtype=torch.float32)
    head, facts = head_of(model), teacher_facts(teacher)

    @torch.inference_mode()
    def bare(_: int) -> None:
        size = group_rows(corpus.row_len)
        for start in range(0, len(corpus), size):
            ids, _ = corpus.rows(np.arange(start, min(start + size, len(corpus))))
            for hidden_TD in hidden_states(model, torch.from_numpy(ids[:, :-1]), end_id=None):
                head.logits(hidden_TD)

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
