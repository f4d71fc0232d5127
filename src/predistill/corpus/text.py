"""Sources to documents: files and folders in, one valid, non-empty UTF-8 text after the other out.

A document is a whole `.txt` or `.md` file, or the text field of one record: a line of `.jsonl`, a row of `.parquet` or
of a Hugging Face data set folder. The first three may be packed as `.gz` or `.zst`. Everything streams: memory follows
the longest document, not the corpus.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import zstandard

from predistill.errors import CorpusError

__all__ = ["Documents"]

CHUNK_BYTES = 1 << 16
LONGEST_ZSTD_WINDOW = 1 << 31
PACKINGS = (".gz", ".zst")
PACKED_KINDS = (".txt", ".md", ".jsonl")
KINDS = (*PACKED_KINDS, ".parquet", ".arrow")
SKIP_ADVICE = "pass --skip-bad to leave such documents out (they are counted)."
NAMED_KINDS = ".txt, .md, .jsonl (plain, .gz or .zst) or .parquet"


class _Bad(Exception):
    """One document that cannot be used: the reason it is counted under, what was found, and what to do."""

    def __init__(self, reason: str, found: str, advice: str = "Mend it") -> None:
        super().__init__(reason)
        self.reason, self.found, self.advice = reason, found, advice


# Where a record stands in its file, and its text as bytes that nobody has checked yet, or why it has none.
_Record = tuple[str, bytes | _Bad]


class Documents:
    """The documents of `sources`, in the order given; a folder's files in the order of their names.

    Iterating yields each document's text as UTF-8 bytes, as it stands, and can be done again. `total_bytes` and
    `done_bytes` count bytes on disk; `skipped` counts, by reason, the bad documents that the last iteration left out.
    Raises `CorpusError` for a source that is missing, of an unknown kind or damaged, and, unless `skip_bad`, for a
    document that is not UTF-8, is empty, is not JSON or lacks the field `text_field`.
    """

    def __init__(
        self, sources: str | Path | Sequence[str | Path], *, text_field: str = "text", skip_bad: bool = False
    ) -> None:
        listed = [sources] if isinstance(sources, str | Path) else sources
        self.files = [file for source in listed for file in _files_of(Path(source))]
        self.text_field = text_field
        self.skip_bad = skip_bad
        self.total_bytes = sum(path.stat().st_size for path in self.files)
        self.done_bytes = 0
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[bytes]:
        self.done_bytes = finished_bytes = 0
        self.skipped.clear()
        for path in self.files:
            with path.open("rb") as file:
                for where, raw in _records(path, file, self.text_field):
                    self.done_bytes = finished_bytes + file.tell()
                    try:
                        yield _checked(raw)
                    except _Bad as bad:
                        if not self.skip_bad:
                            raise CorpusError(f"{path}{where}: {bad.found}. {bad.advice}, or {SKIP_ADVICE}") from None
                        self.skipped[bad.reason] += 1
            finished_bytes += path.stat().st_size
            self.done_bytes = finished_bytes


def _checked(raw: bytes | _Bad) -> bytes:
    if isinstance(raw, _Bad):
        raise raw
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        found = f"byte {raw[error.start]:#04x} in line {line:,} is not UTF-8"
        raise _Bad("invalid UTF-8", found, "Convert it") from None
    if not text or text.isspace():
        raise _Bad("empty document", "the document is empty", "Remove it")
    return raw


def _records(path: Path, file: IO[bytes], text_field: str) -> Iterator[_Record]:
    kind, packing = _kind(path)
    if kind == ".parquet":
        return _parquet_records(path, file, text_field)
    if kind == ".arrow":
        return _arrow_records(path, file, text_field)
    chunks = _chunks(path, file, packing)
    if kind == ".jsonl":
        return _jsonl_records(chunks, text_field)
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


def _jsonl_records(chunks: Iterable[bytes], text_field: str) -> Iterator[_Record]:
    for number, line in enumerate(_lines(chunks), start=1):
        if line.strip():
            yield f" line {number:,}", _jsonl_text(line.removeprefix(codecs.BOM_UTF8), text_field)


def _jsonl_text(line: bytes, text_field: str) -> bytes | _Bad:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return _Bad("invalid UTF-8", f"byte {line[error.start]:#04x} is not UTF-8", "Convert it")
    except json.JSONDecodeError as error:
        return _Bad("not JSON", f"not JSON ({error.msg} at column {error.colno:,})")
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond what Python reads
        return _Bad("not JSON", f"not readable as JSON ({error})")
    if not isinstance(record, dict):
        return _Bad("not JSON", "not a JSON object, one a line")
    if text_field not in record:
        return _missing(text_field, record)
    return _encoded(record[text_field], text_field)


def _encoded(value: Any, text_field: str) -> bytes | _Bad:
    if not isinstance(value, str):
        found = "null" if value is None else f"of type {type(value).__name__}"
        return _Bad("not a text", f'field "{text_field}" is {found}, not a text')
    try:
        return value.encode()
    except UnicodeEncodeError:
        return _Bad("invalid UTF-8", f'field "{text_field}" holds half a surrogate pair, which is not UTF-8')


def _missing(text_field: str, found: Iterable[str]) -> _Bad:
    listed = ", ".join(sorted(found))
    return _Bad("missing field", f'no field "{text_field}" (found: {listed})', "Name it with --text-field")


def _parquet_records(path: Path, file: IO[bytes], text_field: str) -> Iterator[_Record]:
    pa = _pyarrow(path)
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        _check_column(path, table.schema_arrow.names, text_field)
        batches = table.iter_batches(batch_size=256, columns=[text_field])
        yield from _column_records(batches, text_field)
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{path}: not readable as parquet ({error}). Fetch it again.") from None


def _arrow_records(path: Path, file: IO[bytes], text_field: str) -> Iterator[_Record]:
    pa = _pyarrow(path)
    try:
        batches = pa.ipc.open_stream(file)
        _check_column(path, batches.schema.names, text_field)
        yield from _column_records(batches, text_field)
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{path}: not readable as an Arrow stream ({error}). Save the data set again.") from None


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise CorpusError(f"{path}: reading this needs pyarrow. Install predistill[parquet].") from None
    return pyarrow


def _check_column(path: Path, names: Sequence[str], text_field: str) -> None:
    if text_field not in names:
        raise CorpusError(f"{path}: {_missing(text_field, names).found}. Name it with --text-field.")


def _column_records(batches: Iterable[Any], text_field: str) -> Iterator[_Record]:
    row = 0
    for batch in batches:
        for value in batch.column(text_field):
            row += 1
            try:
                yield f" row {row:,}", _encoded(value.as_py(), text_field)
            except UnicodeDecodeError as error:
                yield f" row {row:,}", error.object


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
