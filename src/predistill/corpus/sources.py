"""Sources to documents: files and folders in, one document after the other out, whatever they are packed in.

A record is a line of `.jsonl`, a row of `.parquet` or of a Hugging Face data set folder; a `.txt` or `.md` file is one
text. The first and the last two may be packed as `.gz` or `.zst`. Everything streams: memory follows the longest
document, not the corpus. What a record or a text says is up to a `Reading` (`text.py`, `conversations.py`).
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar

import zstandard

from predistill.errors import CorpusError

__all__ = ["BadDocument", "Documents", "Reading", "json_records", "not_utf8"]

CHUNK_BYTES = 1 << 16
LONGEST_ZSTD_WINDOW = 1 << 31
PACKINGS = (".gz", ".zst")
PACKED_KINDS = (".txt", ".md", ".jsonl")
KINDS = (*PACKED_KINDS, ".parquet", ".arrow")
SKIP_ADVICE = "pass --skip-bad to leave such documents out (they are counted)."
NAMED_KINDS = ".txt, .md, .jsonl (plain, .gz or .zst) or .parquet"

Document = TypeVar("Document")
Read = TypeVar("Read", covariant=True)


class BadDocument(Exception):
    """One document that cannot be used: the reason it is counted under, what was found, and what to do."""

    def __init__(self, reason: str, found: str, advice: str = "Mend it") -> None:
        super().__init__(reason)
        self.reason, self.found, self.advice = reason, found, advice


class Reading(Protocol[Read]):
    """How a document is made of what a file holds. Each method raises `BadDocument` where it cannot be."""

    def columns(self, names: Sequence[str]) -> list[str]:
        """Which columns of a table are read, of those it has."""

    def record(self, record: Mapping[str, Any]) -> Read:
        """The document of a record."""

    def text(self, raw: bytes) -> Read:
        """The document of a whole file, as it stands."""


# Where a document stands in its file, and the record or the text that nobody has checked yet, or why there is none.
_Found = tuple[str, Mapping[str, Any] | bytes | BadDocument]


class Documents(Generic[Document]):
    """The documents of `sources`, in the order given; a folder's files in the order of their names.

    Iterating yields what `reading` makes of each, and can be done again. `total_bytes` and `done_bytes` count bytes on
    disk; `skipped` counts, by reason, the bad documents that the last iteration left out. Raises `CorpusError` for a
    source that is missing, of an unknown kind or damaged, and, unless `skip_bad`, for a document that is bad.
    """

    def __init__(
        self, sources: str | Path | Sequence[str | Path], reading: Reading[Document], *, skip_bad: bool = False
    ) -> None:
        listed = [sources] if isinstance(sources, str | Path) else sources
        self.files = [file for source in listed for file in _files_of(Path(source))]
        self.reading = reading
        self.skip_bad = skip_bad
        self.total_bytes = sum(path.stat().st_size for path in self.files)
        self.done_bytes = 0
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Document]:
        self.done_bytes = finished_bytes = 0
        self.skipped.clear()
        for path in self.files:
            with path.open("rb") as file:
                for where, found in _found_in(path, file, self.reading):
                    self.done_bytes = finished_bytes + file.tell()
                    try:
                        document = self._document(found)
                    except BadDocument as bad:
                        if not self.skip_bad:
                            raise CorpusError(f"{path}{where}: {bad.found}. {bad.advice}, or {SKIP_ADVICE}") from None
                        self.skipped[bad.reason] += 1
                        continue
                    yield document
            finished_bytes += path.stat().st_size
            self.done_bytes = finished_bytes

    def _document(self, found: Mapping[str, Any] | bytes | BadDocument) -> Document:
        if isinstance(found, BadDocument):
            raise found
        return self.reading.text(found) if isinstance(found, bytes) else self.reading.record(found)


def json_records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The records of one `.jsonl` file, packed or not, each with where it stands in it. Raises `CorpusError` for a file
    that is damaged, and at the first line that holds none."""
    with path.open("rb") as file:
        for where, found in _jsonl_records(_chunks(path, file, _kind(path)[1])):
            if isinstance(found, BadDocument):
                raise CorpusError(f"{path}{where}: {found.found}. Mend the line, or fetch the file again.")
            yield where, found


def not_utf8(raw: bytes, error: UnicodeDecodeError) -> BadDocument:
    """What is said of a text that `error` was met in."""
    line = raw.count(b"\n", 0, error.start) + 1
    return BadDocument("invalid UTF-8", f"byte {raw[error.start]:#04x} in line {line:,} is not UTF-8", "Convert it")


def _found_in(path: Path, file: IO[bytes], reading: Reading[Any]) -> Iterator[_Found]:
    kind, packing = _kind(path)
    if kind == ".parquet":
        return _parquet_records(path, file, reading)
    if kind == ".arrow":
        return _arrow_records(path, file, reading)
    chunks = _chunks(path, file, packing)
    if kind == ".jsonl":
        return _jsonl_records(chunks)
    return iter([("", b"".join(chunks).removeprefix(codecs.BOM_UTF8))])


def _chunks(path: Path, file: IO[bytes], packing: str | None) -> Iterator[bytes]:
    """The unpacked bytes in pieces. A file cut short is an error, which zstandard's own stream reader would hide."""
    try:
        if packing == ".zst":
            yield from _zstd_chunks(file)
        else:
            unpacked = gzip.GzipFile(fileobj=file) if packing == ".gz" else file
            while chunk := unpacked.read(CHUNK_BYTES):
                yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise CorpusError(f"{path}: the packed file is damaged or cut short ({error}). Fetch it again.") from None


def _zstd_chunks(file: IO[bytes]) -> Iterator[bytes]:
    unpacker = zstandard.ZstdDecompressor(max_window_size=LONGEST_ZSTD_WINDOW)
    packed = file.read(CHUNK_BYTES)
    while packed:
        frame = unpacker.decompressobj()
        while not frame.eof:
            if not packed:
                raise EOFError("its last frame is not whole")
            yield frame.decompress(packed)
            packed = frame.unused_data or file.read(CHUNK_BYTES)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    pieces: list[bytes] = []
    for chunk in chunks:
        first, *more = chunk.split(b"\n")
        pieces.append(first)
        if more:
            yield b"".join(pieces)
            yield from more[:-1]
            pieces = [more[-1]]
    yield b"".join(pieces)


def _jsonl_records(chunks: Iterable[bytes]) -> Iterator[tuple[str, dict[str, Any] | BadDocument]]:
    for number, line in enumerate(_lines(chunks), start=1):
        if line.strip():
            yield f" line {number:,}", _jsonl_record(line.removeprefix(codecs.BOM_UTF8))


def _jsonl_record(line: bytes) -> dict[str, Any] | BadDocument:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return BadDocument("invalid UTF-8", f"byte {line[error.start]:#04x} is not UTF-8", "Convert it")
    except json.JSONDecodeError as error:
        return BadDocument("not JSON", f"not JSON ({error.msg} at column {error.colno:,})")
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond what Python reads
        return BadDocument("not JSON", f"not readable as JSON ({error})")
    if not isinstance(record, dict):
        return BadDocument("not JSON", "not a JSON object, one a line")
    return record


def _parquet_records(path: Path, file: IO[bytes], reading: Reading[Any]) -> Iterator[_Found]:
    pa = _pyarrow(path)
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        columns = _columns(path, table.schema_arrow.names, reading)
        yield from _table_records(table.iter_batches(batch_size=256, columns=columns), columns)
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{path}: not readable as parquet ({error}). Fetch it again.") from None


def _arrow_records(path: Path, file: IO[bytes], reading: Reading[Any]) -> Iterator[_Found]:
    pa = _pyarrow(path)
    try:
        batches = pa.ipc.open_stream(file)
        yield from _table_records(batches, _columns(path, batches.schema.names, reading))
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{path}: not readable as an Arrow stream ({error}). Save the data set again.") from None


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise CorpusError(f"{path}: reading this needs pyarrow. Install predistill[parquet].") from None
    return pyarrow


def _columns(path: Path, names: Sequence[str], reading: Reading[Any]) -> list[str]:
    try:
        return reading.columns(names)
    except BadDocument as bad:
        raise CorpusError(f"{path}: {bad.found}. {bad.advice}.") from None


def _table_records(batches: Iterable[Any], columns: list[str]) -> Iterator[_Found]:
    row = 0
    for batch in batches:
        for values in zip(*(batch.column(name) for name in columns), strict=True):
            row += 1
            try:
                yield f" row {row:,}", {name: value.as_py() for name, value in zip(columns, values, strict=True)}
            except UnicodeDecodeError as error:
                yield f" row {row:,}", not_utf8(error.object, error)


def _kind(path: Path) -> tuple[str | None, str | None]:
    """(".jsonl", ".zst") of `a.jsonl.zst`; the kind is None when it is none that we read."""
    packing = path.suffix if path.suffix in PACKINGS else None
    kind = path.with_suffix("").suffix if packing else path.suffix
    return (kind if kind in (PACKED_KINDS if packing else KINDS) else None), packing


def _files_of(source: Path) -> list[Path]:
    if not source.exists():
        raise CorpusError(f"{source}: no such file or folder. Check the path of the source.")
    if not source.is_dir():
        if _kind(source)[0] is None:
            raise CorpusError(f"{source}: not a kind of text we read. Give {NAMED_KINDS}, or a folder of them.")
        return [source]
    if (source / "dataset_dict.json").is_file():
        return _files_of(_only_split(source))
    if (source / "state.json").is_file():
        names = [data_file["filename"] for data_file in _saved(source / "state.json", "_data_files")]
        return [file for name in names for file in _files_of(source / name)]
    files = sorted(path for path in source.rglob("*") if _is_text(path, source))
    if not files:
        raise CorpusError(f"{source}: the folder holds no {NAMED_KINDS} file. Check the path of the source.")
    return files


def _is_text(path: Path, folder: Path) -> bool:
    """Hidden files, and the README.md of a data set fetched from a hub, are not its text."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.is_file() and _kind(path)[0] is not None and not hidden and path.name != "README.md"


def _only_split(source: Path) -> Path:
    splits = [str(split) for split in _saved(source / "dataset_dict.json", "splits")]
    if len(splits) != 1:
        raise CorpusError(f"{source}: the data set has splits {', '.join(splits)}. Name one: {source / splits[0]}.")
    return source / splits[0]


def _saved(path: Path, key: str) -> list[Any]:
    """One list of the description that `datasets` saved beside a data set."""
    try:
        return list(json.loads(path.read_bytes())[key])
    except (ValueError, LookupError, TypeError) as error:
        raise CorpusError(f"{path}: not the description of a data set ({error!r}). Save the data set again.") from None
