"""predistill capture: a teacher's distributions over every row of a corpus split, into a store; goes on where it was.

The teacher always runs on the same aligned group of rows at the same shape, so that a resumed capture writes the same
bytes as one that was never stopped.
"""

# R rows of a group  T position  N = R*T  D width  V vocabulary  K kept entries  E entries of all positions
from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
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
from predistill.objective import Sampled, SparseTargets, TopK, TopP, TopPK, Truncation
from predistill.stages.inputs import pick_device
from predistill.store import RowTargets, Store, StoreWriter
from predistill.students.forward import head_of, hidden_states
from predistill.teachers.load import load_teacher, teacher_facts

__all__ = ["capture", "truncation_from_flags"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GROUP_TOKENS = 4096  # tokens of one forward pass of the teacher
CHUNK_LOGITS = 1 << 25  # float32 logits held at once: 128 MiB
CALIBRATION_GROUPS = 4  # whose kept words decide the frequency ranks
SELF_TEST_GROUPS = 4
SAMPLING_SEED = 0


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
    Raises StoreError when `out` was begun with other settings, TeacherError when the teacher does not fit the corpus.
    """
    started = time.perf_counter(), time.process_time()
    if dtype not in DTYPES:
        raise RecipeError(f'--dtype is "{dtype}"{did_you_mean(dtype, DTYPES) or "."} One of {", ".join(DTYPES)}.')
    source, out = Corpus(corpus, split=split), Path(out)
    facts = _facts(teacher, source, truncation, dtype)
    if (out / "manifest.json").exists():
        return _finished(Store(out), facts)
    model = load_teacher(teacher, vocab_size=source.vocab_size, device=pick_device(), dtype=DTYPES[dtype])
    teaching = _Teaching(model, source, truncation)
    with StoreWriter(out, manifest=facts, permutation=_permutation(out, teaching)) as writer:
        before = len(writer.done_rows)
        for rows in teaching.groups:
            missing = [i for i, row in enumerate(rows) if int(row) not in writer]
            if missing:
                targets, hashes = teaching.targets(rows)
                for i in missing:
                    writer.write(int(rows[i]), hashes[i], targets.row(i))
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
        self._model, self._corpus, self._truncation = model, corpus, truncation
        self._head, self._end_id = head_of(model), corpus.end_id if corpus.document_mask else None
        self._draws = truncation.draws if isinstance(truncation, Sampled) else 0
        size = group_rows(corpus.row_len)
        self.groups = [np.arange(i, min(i + size, len(corpus))) for i in range(0, len(corpus), size)]

    def targets(self, rows: npt.NDArray[np.int64]) -> tuple[RowTargets, list[int]]:
        """A group's targets in the store's form, and each row's token hash."""
        ids, _ = self._corpus.rows(rows)
        return self._row_targets(rows, list(self._pieces(rows, ids))), [row_hash(row) for row in ids]

    @torch.inference_mode()
    def _pieces(self, rows: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]) -> Iterator[SparseTargets]:
        """The group's targets, a few positions of one row at a time: [N, V] is never whole."""
        ids_RT1 = torch.from_numpy(ids).to(self._model.device)
        hidden_RTD = hidden_states(self._model, ids_RT1[:, :-1], end_id=self._end_id)
        vocab_size = self._corpus.vocab_size
        size = max(1, CHUNK_LOGITS // vocab_size)
        for row, hidden_TD, label_T in zip(rows, hidden_RTD, ids_RT1[:, 1:], strict=True):
            for start in range(0, len(label_T), size):
                logit_NV = self._head.logits(hidden_TD[start : start + size])[:, :vocab_size]
                label_N = label_T[start : start + size]
                if isinstance(self._truncation, Sampled):
                    yield self._truncation(logit_NV, label_N, generator=_generator(int(row), start, logit_NV.device))
                else:
                    yield self._truncation(logit_NV, label_N)

    def _row_targets(self, rows: npt.NDArray[np.int64], pieces: list[SparseTargets]) -> RowTargets:
        """Padded tensors of consecutive positions as one set of CSR arrays."""

        def column(name: str) -> npt.NDArray[np.float32] | None:
            values = [getattr(piece, name) for piece in pieces]
            return None if values[0] is None else torch.cat(values).cpu().numpy()

        def entries(name: str) -> npt.NDArray[Any] | None:
            if getattr(pieces[0], name) is None:
                return None
            return torch.cat([getattr(piece, name)[piece.ids_NK >= 0] for piece in pieces]).cpu().numpy()

        ids_E, weight_E = entries("ids_NK"), entries("weight_NK")
        assert ids_E is not None
        lengths = torch.cat([(piece.ids_NK >= 0).sum(dim=1) for piece in pieces]).cpu().numpy()
        return RowTargets(
            row_ids=rows,
            positions=self._corpus.row_len,
            length_N=lengths.astype(np.int32),
            ids_E=ids_E.astype(np.int32),
            logprob_E=entries("logprob_NK"),
            count_E=None if weight_E is None else np.rint(weight_E * self._draws).astype(np.int32),
            log_rest_N=column("log_rest_N"),
            entropy_N=column("entropy_N"),
            logit_std_N=column("logit_std_N"),
            label_logprob_N=column("label_logprob_N"),
        )

    def self_test(self) -> dict[str, float | int]:
        """What the manifest says of the capture: means over evenly spaced groups, recomputed when all rows are in."""
        chosen = _spread(self.groups, SELF_TEST_GROUPS)
        targets = [self.targets(rows)[0] for rows in chosen]

        def mean(values: list[npt.NDArray[np.float32] | None]) -> float:
            return float(np.concatenate([v for v in values if v is not None]).mean(dtype=np.float64))

        facts: dict[str, float | int] = {
            "rows": sum(len(rows) for rows in chosen),
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


def _spread(groups: list[npt.NDArray[np.int64]], count: int) -> list[npt.NDArray[np.int64]]:
    return [groups[i] for i in sorted({int(i) for i in np.linspace(0, len(groups) - 1, count)})]


def _generator(row: int, position: int, device: torch.device) -> torch.Generator:
    """One stream of random numbers a row (and a piece of it): draws do not depend on the batch."""
    seed = np.random.SeedSequence([SAMPLING_SEED, row, position]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed >> np.uint64(1)))


def _permutation(out: Path, teaching: _Teaching) -> npt.NDArray[np.int64]:
    """Frequency rank -> id from a calibration sample; fixed before the first row, and read again on resume."""
    path = out / "id_permutation.npy"
    if path.exists():
        return np.asarray(np.load(path), dtype=np.int64)
    counts = np.zeros(teaching._corpus.vocab_size, dtype=np.int64)
    for rows in _spread(teaching.groups, CALIBRATION_GROUPS):
        counts += np.bincount(teaching.targets(rows)[0].ids_E, minlength=len(counts))
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
        "command": " ".join(["predistill", *sys.argv[1:]]),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
    }
    write_atomic(out / "capture.json", (json.dumps(cost, indent=2) + "\n").encode())
