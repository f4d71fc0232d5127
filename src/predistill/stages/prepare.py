"""`predistill prepare`: text to a corpus of rows, in flat memory, the same bytes from any number of processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from predistill import __version__
from predistill.corpus.building import check_free, moved_when_whole
from predistill.corpus.reader import FORMAT, SPLITS, Corpus
from predistill.corpus.rows import SplitStats, SplitWriter, id_dtype_of
from predistill.corpus.split import is_held_out, split_hash
from predistill.corpus.text import Documents
from predistill.corpus.tokenizer import CorpusTokenizer, load_tokenizer, sample_texts, train_bpe
from predistill.corpus.workers import tokenised
from predistill.errors import CorpusError
from predistill.files import write_sealed_json
from predistill.fingerprint import file_sha256

__all__ = ["prepare"]

OnProgress = Callable[[int, int, str], None]


def prepare(
    sources: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    tokenizer: str | Path | None = None,
    train_tokenizer: int | None = None,
    row_len: int = 256,
    held_out: float = 0.01,
    seed: int = 0,
    text_field: str = "text",
    skip_bad: bool = False,
    document_mask: bool = False,
    processes: int | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Turn `sources` into a corpus at `out`, with a `tokenizer` that is given or one of `train_tokenizer` entries.

    The corpus is built beside `out` and moved there when it is whole: a kill leaves nothing at `out`, and running again
    starts afresh. `processes` (default: the cores at hand) changes the speed and not one byte. `on_progress` hears
    (done bytes, total bytes, phase), the phase one of sample, tokenise, write. Returns the manifest with `path`,
    `fingerprint` and `notes`, sentences for the user. Raises `CorpusError` for unusable settings or text.
    """
    _check_settings(row_len=row_len, held_out=held_out, seed=seed, processes=processes)
    check_free(Path(out), overwrite=overwrite)
    documents = Documents(sources, text_field=text_field, skip_bad=skip_bad)
    progress = on_progress or _no_progress
    chosen = _tokenizer(documents, tokenizer, train_tokenizer, held_out, progress)
    with moved_when_whole(Path(out)) as folder:
        chosen.save(folder)
        train, test = (
            SplitWriter(
                folder / f"{split}.bin",
                row_len=row_len,
                end_id=chosen.end_id,
                id_dtype=id_dtype_of(chosen.vocab_size),
                seed=seed,
            )
            for split in SPLITS
        )
        pairs = tokenised(
            _watched(documents, "tokenise", progress),
            tokenizer_path=folder / "tokenizer.json",
            id_dtype=id_dtype_of(chosen.vocab_size),
            processes=processes or _cores(),
        )
        with closing(pairs):  # ends the processes, whatever happens
            for text, ids in pairs:
                (test if is_held_out(split_hash(text), held_out) else train).add(text, ids)
        splits = _written({"train": train, "held_out": test}, chosen, progress)
        _check_rows(splits["train"], Path(out), row_len)
        manifest = {
            "format": FORMAT,
            "predistill": __version__,
            "row_len": row_len,
            "document_mask": document_mask,
            "stream": {"opened_by": chosen.end_id, "documents_closed_by": chosen.end_id},
            "id_dtype": id_dtype_of(chosen.vocab_size).str,
            "held_out": held_out,
            "seed": seed,
            "tokenizer": {
                "sha256": file_sha256(folder / "tokenizer.json"),
                "vocab_size": chosen.vocab_size,
                "end_token": chosen.end_token,
                "end_id": chosen.end_id,
                "trained_here": train_tokenizer is not None,
            },
            "text_field": text_field,
            "sources": [{"name": path.name, "bytes": path.stat().st_size} for path in documents.files],
            "skipped": dict(sorted(documents.skipped.items())),
            "splits": splits,
        }
        write_sealed_json(folder / "manifest.json", manifest)
    return {"path": str(out), "fingerprint": Corpus(out).fingerprint, "notes": _notes(manifest), **manifest}


def _no_progress(done_bytes: int, total_bytes: int, phase: str) -> None:
    pass


def _check_settings(*, row_len: int, held_out: float, seed: int, processes: int | None) -> None:
    if row_len < 1:
        raise CorpusError(f"--row-len {row_len}: a row has at least 1 position.")
    if not 0 <= held_out < 1:
        raise CorpusError(f"--held-out {held_out}: give a fraction from 0 to below 1.")
    if not 0 <= seed < 1 << 64:
        raise CorpusError(f"--seed {seed}: give a number from 0 to below 2^64.")
    if processes is not None and processes < 1:
        raise CorpusError(f"--processes {processes}: give at least 1.")


def _tokenizer(
    documents: Documents,
    given: str | Path | None,
    vocab_size: int | None,
    held_out: float,
    progress: OnProgress,
) -> CorpusTokenizer:
    if given is not None and vocab_size is None:
        return load_tokenizer(given)
    if given is None and vocab_size is not None:
        sample = sample_texts(_watched(documents, "sample", progress), held_out=held_out)
        return train_bpe(sample, vocab_size=vocab_size)
    raise CorpusError("Give one of --tokenizer PATH and --train-tokenizer SIZE.")


def _watched(documents: Documents, phase: str, progress: OnProgress) -> Iterator[bytes]:
    for text in documents:
        progress(documents.done_bytes, documents.total_bytes, phase)
        yield text
    progress(documents.done_bytes, documents.total_bytes, phase)


def _written(writers: dict[str, SplitWriter], chosen: CorpusTokenizer, progress: OnProgress) -> dict[str, SplitStats]:
    total_bytes = sum(writer.token_bytes for writer in writers.values())
    done_bytes = 0

    def on_bytes(count: int) -> None:
        nonlocal done_bytes
        done_bytes += count
        progress(done_bytes, total_bytes, "write")

    stats = {split: writer.finish(text_bytes=chosen.text_bytes, on_bytes=on_bytes) for split, writer in writers.items()}
    progress(total_bytes, total_bytes, "write")  # the tokens of the last, incomplete rows were dropped
    return stats


def _check_rows(train: SplitStats, out: Path, row_len: int) -> None:
    if not train["rows"]:
        found = f"{train['documents']:,} documents for training fill no row of {row_len:,} tokens"
        raise CorpusError(f"{out}: {found}. Give more text, or a smaller --row-len or --held-out.")


def _notes(manifest: dict[str, Any]) -> list[str]:
    notes = []
    if manifest["skipped"]:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in manifest["skipped"].items())
        notes.append(f"Left out {sum(manifest['skipped'].values()):,} bad documents: {counts}.")
    held_out = manifest["splits"]["held_out"]
    if manifest["held_out"] and not held_out["rows"]:
        found = f"{held_out['documents']:,} held-out documents fill no row"
        notes.append(
            f"Nothing can be evaluated on this corpus: its {found}. Give more documents or a larger --held-out."
        )
    return notes


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
