"""The facts of a store: what its manifest says it was made from, and what training checks."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from predistill.corpus import Corpus
from predistill.fingerprint import file_sha256
from predistill.objective import Sampled, Truncation
from predistill.teachers.pieces import SAMPLING_SEED

__all__ = ["store_facts"]


def store_facts(
    corpus: Corpus,
    truncation: Truncation,
    *,
    teacher: dict[str, Any],
    capture: dict[str, Any],
    lse_tau: float | None = None,
) -> dict[str, Any]:
    """The static part of a manifest, which must not change while the store grows. `teacher`: its name, the SHA-256 of
    its weights and its precision; `capture`: how it was run, as far as the bytes depend on it; `lse_tau`: the
    temperature whose log-sum-exp is kept."""
    kept = TypeAdapter(type(truncation)).dump_python(truncation, mode="json")
    sampled = isinstance(truncation, Sampled)
    return {
        "teacher": teacher,
        "tokenizer": {"sha256": file_sha256(corpus.tokenizer_path), "vocab_size": corpus.vocab_size},
        "corpus": {
            "fingerprint": corpus.fingerprint,
            "split": corpus.split,
            "row_len": corpus.row_len,
            "document_mask": corpus.document_mask,
            "stream": corpus.manifest["stream"],
        },
        "capture": capture,
        ("sampling" if sampled else "truncation"): {**kept, "seed": SAMPLING_SEED} if sampled else kept,
        **({} if lse_tau is None else {"lse_tau": lse_tau}),
    }
