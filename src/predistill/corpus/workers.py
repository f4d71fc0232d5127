"""Tokenisation in parallel: worker processes that turn documents into token ids, given back in their order.

A worker is a fresh Python that is spoken to over its pipes: nothing is forked after threads have started, the caller's
`__main__` is not imported again, and a worker whose caller was killed reads the end of its pipe and goes.
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Generic, NamedTuple, TypeVar

import numpy as np
from tokenizers import Tokenizer, processors

from predistill.corpus.conversations import Conversation, marked_ids
from predistill.corpus.overlap import TaskGrams
from predistill.errors import CorpusError

__all__ = ["Answer", "serve", "tokenised", "tokenised_conversations"]

Document = TypeVar("Document")

BATCH_BYTES = 1 << 16
PIECE_BYTES = 1 << 16  # tokenizers takes some 130 bytes of memory per byte of one text
LONE_NEWLINE = re.compile(rb"(?<=\S)\n(?=\S)")
LENGTH = struct.Struct("<Q")
FILE_DTYPE = np.dtype("<u2")  # of the numbers of task files
SERVE = "from predistill.corpus.workers import serve; serve()"


class Answer(NamedTuple, Generic[Document]):
    """A document, the bytes of its ids, and the numbers of the task files that it shares words with."""

    document: Document
    ids: bytes
    files_met: list[int]


def tokenised(
    texts: Iterable[bytes],
    *,
    tokenizer_path: Path,
    id_dtype: np.dtype[Any],
    processes: int,
    task_grams: Path | None = None,
) -> Generator[Answer[bytes], None, None]:
    """Each text with its token ids as bytes of `id_dtype`: the same, in the same order, from any number of processes.
    `task_grams`: where a `TaskGrams` was saved that the texts are compared with.

    A special token spelled out in a text is read as ordinary text. A text above 64 KiB is tokenised in pieces that end
    with a line. At most two batches of texts per process are under way. Raises `CorpusError` when a process is killed.
    """
    return _answered(texts, bytes, ["texts", _said(task_grams), str(tokenizer_path), id_dtype.str], processes)


def tokenised_conversations(
    conversations: Iterable[Conversation],
    *,
    tokenizer_path: Path,
    end_id: int,
    special_tokens_are_text: bool,
    processes: int,
    task_grams: Path | None = None,
) -> Generator[Answer[Conversation], None, None]:
    """Each conversation with its `marked_ids` as bytes, as `tokenised` does it with texts; none is cut in pieces. What
    is compared is its text in the plain template, whatever its own."""

    def packed(each: Conversation) -> bytes:
        return json.dumps([*each[:3], *([] if task_grams is None else [each.plain.decode()])]).encode()

    settings = [str(tokenizer_path), str(end_id), str(int(special_tokens_are_text))]
    return _answered(conversations, packed, ["conversations", _said(task_grams), *settings], processes)


def _said(task_grams: Path | None) -> str:
    return "" if task_grams is None else str(task_grams)


def _answered(
    documents: Iterable[Document], packed: Callable[[Document], bytes], arguments: list[str], processes: int
) -> Generator[Answer[Document], None, None]:
    command = [sys.executable, "-P", "-c", SERVE, *arguments]
    search_path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": search_path}
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        for _ in range(processes)
    ]
    idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def answers(batch: list[tuple[Document, bytes]]) -> list[Answer[Document]]:
        worker = idle.get()
        try:
            told = _ask(worker, [data for _, data in batch])
        finally:
            idle.put(worker)
        ids, met = told[: len(batch)], told[len(batch) :] or [b""] * len(batch)
        return [
            Answer(document, each, np.frombuffer(files, FILE_DTYPE).tolist())
            for (document, _), each, files in zip(batch, ids, met, strict=True)
        ]

    under_way: deque[Future[list[Answer[Document]]]] = deque()
    threads = ThreadPoolExecutor(processes)
    try:
        for batch in _batches((document, packed(document)) for document in documents):
            under_way.append(threads.submit(answers, batch))
            if len(under_way) == 2 * processes:
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.communicate()


def _ask(worker: subprocess.Popen[bytes], texts: list[bytes]) -> list[bytes]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        _send(worker.stdin, texts)
        return _receive(worker.stdout)
    except (EOFError, BrokenPipeError):
        found = f"A tokenising process ended with status {worker.wait()}"
        raise CorpusError(f"{found}. If memory ran short, pass a smaller --processes.") from None


def _batches(documents: Iterable[tuple[Document, bytes]]) -> Iterator[list[tuple[Document, bytes]]]:
    batch: list[tuple[Document, bytes]] = []
    batch_bytes = 0
    for document, data in documents:
        batch.append((document, data))
        batch_bytes += len(data)
        if batch_bytes >= BATCH_BYTES:
            yield batch
            batch, batch_bytes = [], 0
    if batch:
        yield batch


def serve() -> None:
    """The worker's side: documents from standard input, their ids and, if they are compared, the files that each has
    met to standard output, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the caller decides
    _, kind, task_grams, tokenizer_path, *arguments = sys.argv
    tasks = TaskGrams.load(Path(task_grams)) if task_grams else None
    text_of: Callable[[bytes], str] = bytes.decode if kind == "texts" else lambda data: str(json.loads(data)[3])
    encoder: Callable[..., Callable[[bytes], bytes]] = _text_encoder if kind == "texts" else _conversation_encoder
    encoded = encoder(tokenizer_path, *arguments)
    with suppress(EOFError, BrokenPipeError):
        while True:
            documents = _receive(sys.stdin.buffer)
            answer = [encoded(document) for document in documents]
            if tasks is not None:
                met = tasks.files_met([text_of(document) for document in documents])
                answer += [np.array(files, FILE_DTYPE).tobytes() for files in met]
            _send(sys.stdout.buffer, answer)


def _text_encoder(tokenizer_path: str, id_dtype: str) -> Callable[[bytes], bytes]:
    tokenizer = Tokenizer.from_file(tokenizer_path)
    tokenizer.encode_special_tokens = True
    return lambda text: _encoded(tokenizer, text, np.dtype(id_dtype))


def _conversation_encoder(tokenizer_path: str, end_id: str, special_tokens_are_text: str) -> Callable[[bytes], bytes]:
    tokenizer = Tokenizer.from_file(tokenizer_path)
    tokenizer.encode_special_tokens = bool(int(special_tokens_are_text))
    # It adds no token here, and would only let a word begin behind its own white space.
    tokenizer.post_processor = processors.Sequence([])

    def encoded(data: bytes) -> bytes:
        text, spans, closed_by_end, *_ = json.loads(data)
        return marked_ids(tokenizer, Conversation(text, spans, closed_by_end, b""), end_id=int(end_id)).tobytes()

    return encoded


def _encoded(tokenizer: Tokenizer, text: bytes, id_dtype: np.dtype[Any]) -> bytes:
    ids = []
    for piece in _pieces(text):
        # A batch of one, because only the batch call leaves out the offsets: 1.6 times the speed of `encode`.
        (encoding,) = tokenizer.encode_batch_fast([piece], add_special_tokens=False)
        ids.append(np.array(encoding.ids, dtype=id_dtype).tobytes())
    return b"".join(ids)


def _pieces(text: bytes) -> Iterator[str]:
    start = 0
    while len(text) - start > PIECE_BYTES:
        end = _cut(text, start, start + PIECE_BYTES)
        yield text[start:end].decode()
        start = end
    yield text[start:].decode()


def _cut(text: bytes, start: int, end: int) -> int:
    """The last good place to cut before `end`: after a lone newline, where byte-level tokenizers part words anyway, so
    that no id changes; else after any newline; else between two characters."""
    lone = [match.end() for match in LONE_NEWLINE.finditer(text, start, end)]
    if lone:
        return lone[-1]
    return text.rfind(b"\n", start, end) + 1 or start + len(text[start:end].decode(errors="ignore").encode())


def _send(pipe: IO[bytes], parts: Sequence[bytes]) -> None:
    pipe.write(LENGTH.pack(len(parts)))
    for part in parts:
        pipe.write(LENGTH.pack(len(part)))
        pipe.write(part)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> list[bytes]:
    """What the other side sent; raises `EOFError` when it has gone."""
    return [_read(pipe, _read_length(pipe)) for _ in range(_read_length(pipe))]


def _read_length(pipe: IO[bytes]) -> int:
    (length,) = LENGTH.unpack(_read(pipe, LENGTH.size))
    return int(length)


def _read(pipe: IO[bytes], length: int) -> bytes:
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return data
