"""predistill capture: a teacher's distributions over every row of a corpus split, into a store; goes on where it was.

The teacher always runs on the same aligned group of rows at the same shape, so that a resumed capture writes the same
bytes as one that was never stopped.
"""

# R rows of a group  T position  N = R*T  D width  V vocabulary  K kept entries  E entries of all positions
from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter
from transformers import PreTrainedModel

from predistill.corpus import Corpus
from predistill.errors import RecipeError, StoreError, did_you_mean
from predistill.files import write_atomic
from predistill.fingerprint import file_sha256, row_hash
from predistill.objective import Full, Sampled, TopK, TopP, TopPK, Truncation
from predistill.runs import command_line
from predistill.stages.inputs import pick_device
from predistill.store import RowTargets, Store, StoreWriter
from predistill.teachers.csr import csr_arrays
from predistill.teachers.live import SAMPLING_SEED, LiveTeacher
from predistill.teachers.load import load_teacher, teacher_facts

__all__ = ["capture", "truncation_from_flags"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GROUP_TOKENS = 4096  # tokens of one forward pass of the teacher
SAMPLE_GROUPS = 4  # evenly spaced: their kept words decide the frequency ranks, their means are the self-test


def capture(
    teacher: str | Path,
    *,
    corpus: str | Path,
    out: str | Path,
    truncation: Truncation,
    split: str = "train",
    dtype: str = "fp32",
    on_progress: Callable[[int, int], None] | None = None,
) -> Store:
    """Write the teacher's targets for every row of `split` to store `out`; a sealed store of the same is left alone.

    `dtype` is the teacher's precision: fp32, bf16 or fp16. `on_progress(rows done, rows)` is called after every group.
    Raises StoreError when `out` was begun with other settings, TeacherError when the teacher does not fit the corpus,
    RecipeError for draws from anything but the teacher itself.
    """
    started = time.perf_counter(), time.process_time()
    if dtype not in DTYPES:
        raise RecipeError(f'--dtype is "{dtype}"{did_you_mean(dtype, DTYPES) or "."} One of {", ".join(DTYPES)}.')
    if isinstance(truncation, Full):
        raise RecipeError("truncation is full, and a store keeps a part of every distribution: use top_p_k or sampled.")
    if isinstance(truncation, Sampled) and truncation.proposal_temperature != 1:
        raise RecipeError(
            f"proposal_temperature is {truncation.proposal_temperature:g}, capture draws from the teacher: use 1."
        )
    source, out = Corpus(corpus, split=split), Path(out)
    facts = _facts(teacher, source, truncation, dtype)
    if (out / "manifest.json").exists():
        return _finished(Store(out), facts)
    model = load_teacher(teacher, vocab_size=source.vocab_size, device=pick_device(), dtype=DTYPES[dtype])
    teaching = _Teaching(model, source, truncation)
    with StoreWriter(out, manifest=facts, permutation=_permutation(out, teaching)) as writer:
        before = len(writer.done_rows)
        for group, rows in enumerate(teaching.groups):
            missing = [i for i, row in enumerate(rows) if int(row) not in writer]
            if missing:
                for record in teaching.records(group, missing, writer):
                    writer.append(record)
            if on_progress is not None:
                on_progress(int(rows[-1]) + 1, len(source))
        writer.seal(teaching.self_test(), rows_expected=len(source))
    _write_cost(out, tokens=(len(source) - before) * source.row_len, started=started)
    return Store(out)


def truncation_from_flags(*, top_p: float | None, top_k: int | None, draws: int | None) -> Truncation:
    """The command line's choice; nothing chosen is the paper's top-p .95 then top-k 100."""
    if draws is not None:
        if top_p is not None or top_k is not None:
            raise RecipeError("--draws stands alone: leave --top-p and --top-k out, or leave --draws out.")
        return Sampled(draws=draws)
    if top_p is None:
        return TopPK(p=0.95, k=100) if top_k is None else TopK(k=top_k)
    return TopP(p=top_p) if top_k is None else TopPK(p=top_p, k=top_k)


class _Teaching:
    """A teacher over the aligned row groups of a split."""

    def __init__(self, model: PreTrainedModel, corpus: Corpus, truncation: Truncation) -> None:
        self._corpus = corpus
        end_id = corpus.end_id if corpus.document_mask else None
        self._teacher = LiveTeacher(model, truncation=truncation, vocab_size=corpus.vocab_size, end_id=end_id)
        size = group_rows(corpus.row_len)
        self.groups = [np.arange(i, min(i + size, len(corpus))) for i in range(0, len(corpus), size)]
        self._sampled = {int(i) for i in np.linspace(0, len(self.groups) - 1, SAMPLE_GROUPS)}
        self._kept: dict[int, RowTargets] = {}

    def targets(self, group: int) -> RowTargets:
        """A group's targets in the store's form; those of the sample are kept, for they are asked for three times."""
        if group in self._kept:
            return self._kept[group]
        rows = self.groups[group]
        pieces = self._teacher.pieces(rows, self._corpus.rows(rows)[0], csr_arrays)
        columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        targets = RowTargets(row_ids=rows, positions=self._corpus.row_len, **columns)
        if group in self._sampled:
            self._kept[group] = targets
        return targets

    def sample(self) -> list[RowTargets]:
        """The targets of the sample's groups."""
        return [self.targets(group) for group in sorted(self._sampled)]

    def records(self, group: int, chosen: list[int], writer: StoreWriter) -> list[bytes]:
        """The packed records of some of a group's rows, in order."""
        targets, rows = self.targets(group), self.groups[group]
        ids, _ = self._corpus.rows(rows)
        return self._teacher.map(lambda i: writer.packed(int(rows[i]), row_hash(ids[i]), targets.row(i)), chosen)

    def self_test(self) -> dict[str, float | int]:
        """What the manifest says of the capture: means over the sample, the same from a capture that was resumed."""
        targets = self.sample()

        def mean(values: list[npt.NDArray[np.float32] | None]) -> float:
            return float(np.concatenate([v for v in values if v is not None]).mean(dtype=np.float64))

        facts: dict[str, float | int] = {
            "sample_rows": sum(len(t.row_ids) for t in targets),
            "teacher_loss_nats": -mean([t.label_logprob_N for t in targets]),
            "mean_entropy_nats": mean([t.entropy_N for t in targets]),
            "mean_logit_std": mean([t.logit_std_N for t in targets]),
            "mean_entries": mean([t.length_N.astype(np.float32) for t in targets]),
        }
        if targets[0].log_rest_N is not None:
            facts["mean_kept_mass"] = 1.0 - mean([np.exp(t.log_rest_N) for t in targets if t.log_rest_N is not None])
        return facts


def group_rows(row_len: int) -> int:
    """Rows of one aligned group: the teacher's batch, and later the unit that a worker claims."""
    return max(1, GROUP_TOKENS // row_len)


def _permutation(out: Path, teaching: _Teaching) -> npt.NDArray[np.int64]:
    """Frequency rank -> id from the sample; fixed before the first row, and read again on resume."""
    path = out / "id_permutation.npy"
    if path.exists():
        return np.asarray(np.load(path), dtype=np.int64)
    counts = np.zeros(teaching._corpus.vocab_size, dtype=np.int64)
    for targets in teaching.sample():
        counts += np.bincount(targets.ids_E, minlength=len(counts))
    return np.argsort(-counts, kind="stable")


def _facts(teacher: str | Path, corpus: Corpus, truncation: Truncation, dtype: str) -> dict[str, Any]:
    """The static part of the manifest: what must not change while a store grows, and what training checks."""
    kept = TypeAdapter(type(truncation)).dump_python(truncation, mode="json")
    if isinstance(truncation, Sampled):
        kept |= {"seed": SAMPLING_SEED}
    return {
        "teacher": {
            **teacher_facts(teacher),
            "dtype": dtype,
            "engine": {"name": "transformers", "version": version("transformers"), "torch": torch.__version__},
        },
        "tokenizer": {"sha256": file_sha256(corpus.tokenizer_path), "vocab_size": corpus.vocab_size},
        "corpus": {
            "fingerprint": corpus.fingerprint,
            "split": corpus.split,
            "row_len": corpus.row_len,
            "document_mask": corpus.document_mask,
            "stream": corpus.manifest["stream"],
        },
        "capture": {
            "group_rows": group_rows(corpus.row_len),
            "threads": torch.get_num_threads(),
            "device": pick_device().type,
        },
        ("sampling" if isinstance(truncation, Sampled) else "truncation"): kept,
    }


def _finished(store: Store, facts: dict[str, Any]) -> Store:
    """The sealed store, if it is the one that was asked for; threads and versions may differ."""
    for key in ("tokenizer", "corpus", "truncation", "sampling"):
        if store.manifest.get(key) != facts.get(key):
            raise StoreError(
                f"{store.path}: this store is complete and was made with another {key} ({store.manifest.get(key)}, "
                f"asked for {facts.get(key)}). Name another --out."
            )
    if store.manifest["teacher"]["sha256"] != facts["teacher"]["sha256"]:
        raise StoreError(f"{store.path}: this store is complete and was made by another teacher. Name another --out.")
    return store


def _write_cost(out: Path, *, tokens: int, started: tuple[float, float]) -> None:
    seconds, cpu_seconds = time.perf_counter() - started[0], time.process_time() - started[1]
    cost = {
        "command": command_line(),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
    }
    write_atomic(out / "capture.json", (json.dumps(cost, indent=2) + "\n").encode())
