"""`predistill prepare`: text or conversations to a corpus of rows, in flat memory, the same bytes from any number of
processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from predistill import __version__
from predistill.corpus.building import check_free, moved_when_whole
from predistill.corpus.reader import INSTRUCT_FORMAT, SPLITS, Corpus
from predistill.corpus.rows import SplitStats, SplitWriter, id_dtype_of
from predistill.corpus.split import is_held_out, split_hash
from predistill.corpus.tokenizer import CorpusTokenizer, load_tokenizer, sample_texts, train_bpe
from predistill.errors import CorpusError
from predistill.files import write_sealed_json
from predistill.fingerprint import file_sha256
from predistill.stages.decontamination import Decontamination, decontamination_notes
from predistill.stages.material import Conversations, Material, OnProgress, Texts

__all__ = ["prepare"]


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
    instruct: bool = False,
    chat_template: str | Path | None = None,
    decontaminate: str | Path | Sequence[str | Path] = (),
    processes: int | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Turn `sources` into a corpus at `out`, with a `tokenizer` that is given or one of `train_tokenizer` entries.

    With `instruct` the sources hold conversations, written by the template in the file `chat_template`, else the
    tokenizer's own, else a plain one; what the assistant says is counted, and the rest is only read.

    Training documents that share 13 words in a row with one of the task files `decontaminate` (or of folders of such)
    are left out, and nothing else changes: every other document is in its split and in its order, and a tokenizer that
    is trained here has read the same sample, so that a corpus with them and one without can be compared.

    The corpus is built beside `out` and moved there when it is whole: a kill leaves nothing at `out`, and running again
    starts afresh. `processes` (default: the cores at hand) changes the speed and not one byte. `on_progress` hears
    (done bytes, total bytes, phase), the phase one of sample, tokenise, write. Returns the manifest with `path`,
    `fingerprint` and `notes`, sentences for the user. Raises `CorpusError` for unusable settings or text.
    """
    _check_settings(row_len=row_len, held_out=held_out, seed=seed, processes=processes)
    _check_kind(instruct=instruct, chat_template=chat_template, text_field=text_field)
    if (tokenizer is None) == (train_tokenizer is None):
        raise CorpusError("Give one of --tokenizer PATH and --train-tokenizer SIZE.")
    check_free(Path(out), overwrite=overwrite)
    progress = on_progress or _no_progress
    loaded = None if tokenizer is None else load_tokenizer(tokenizer)
    material: Material = Texts.of(sources, text_field=text_field, skip_bad=skip_bad)
    if instruct:
        material = Conversations.of(
            sources,
            template=chat_template,
            tokenizer_path=tokenizer,
            tokenizer=loaded,
            document_mask=document_mask,
            skip_bad=skip_bad,
        )
    tasks = Decontamination(decontaminate) if decontaminate else None
    chosen = loaded or _trained(material, train_tokenizer, held_out, progress)
    with moved_when_whole(Path(out)) as folder:
        material.save(chosen, folder)
        train, test = (
            SplitWriter(
                folder / f"{split}.bin",
                row_len=row_len,
                end_id=chosen.end_id,
                id_dtype=id_dtype_of(chosen.vocab_size),
                seed=seed,
                marked=instruct,
            )
            for split in SPLITS
        )
        with nullcontext() if tasks is None else tasks.saved(folder) as task_grams:
            tokenised = material.tokenised(
                chosen, folder, task_grams=task_grams, processes=processes or _cores(), progress=progress
            )
            with closing(tokenised):  # ends the processes, whatever happens
                for text, ids, decides, files_met in tokenised:
                    if is_held_out(split_hash(decides), held_out):
                        test.add(text, ids)
                    elif tasks is not None and files_met:
                        tasks.leave_out(text, files_met)
                        train.leave_out()
                    else:
                        train.add(text, ids)
        splits = _written({"train": train, "held_out": test}, chosen, progress)
        _check_rows(splits["train"], Path(out), row_len)
        manifest = {
            "format": material.format,
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
            **material.facts,
            "sources": [{"name": path.name, "bytes": path.stat().st_size} for path in material.documents.files],
            "skipped": dict(sorted(material.documents.skipped.items())),
            **({} if tasks is None else {"decontaminated": tasks.facts}),
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


def _check_kind(*, instruct: bool, chat_template: str | Path | None, text_field: str) -> None:
    if instruct and text_field != "text":
        raise CorpusError(
            f"--text-field {text_field}: does not go with --instruct, which reads messages, or question and solution."
        )
    if chat_template is not None and not instruct:
        raise CorpusError(f"--chat-template {chat_template}: is for conversations. Give --instruct with it.")


def _trained(material: Material, vocab_size: int | None, held_out: float, progress: OnProgress) -> CorpusTokenizer:
    assert vocab_size is not None
    return train_bpe(sample_texts(material.sample(progress), held_out=held_out), vocab_size=vocab_size)


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
    if "decontaminated" in manifest:
        notes += decontamination_notes(manifest["decontaminated"])
    train, held_out = (manifest["splits"][split] for split in SPLITS)
    if manifest["format"] == INSTRUCT_FORMAT:
        labels = train["tokens"] - 1
        notes.append(
            f"{train['documents']:,} conversations to train on, in the words of the {_named(manifest)} template: the "
            f"responses are {train['counted']:,} of {labels:,} tokens ({train['counted'] / labels:.1%})."
        )
    if manifest["held_out"] and not held_out["rows"]:
        found = f"{held_out['documents']:,} held-out documents fill no row"
        notes.append(
            f"Nothing can be evaluated on this corpus: its {found}. Give more documents or a larger --held-out."
        )
    return notes


def _named(manifest: dict[str, Any]) -> str:
    source: str = manifest["chat_template"]["source"]
    return {"plain": "plain", "tokenizer": "tokenizer's"}.get(source, source)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
