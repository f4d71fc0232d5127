"""Sources become the same documents whatever they are packed in; a bad document is named by its file and line."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from predistill.corpus.sources import _lines
from predistill.corpus.text import texts
from predistill.errors import CorpusError

TEXTS = ["One day.\nA second line.", "  春眠不觉晓，\n处处闻啼鸟。\n", "emoji 🙂 and é", "x" * 70_000]
SKIPPABLE_FRAME = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"


def jsonl(texts: list[str], field: str = "text") -> bytes:
    return b"".join(json.dumps({"id": i, field: text}).encode() + b"\n" for i, text in enumerate(texts))


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def read(*sources: Path, **settings: object) -> list[str]:
    return [text.decode() for text in texts(sources, **settings)]  # type: ignore[arg-type]


def write_jsonl(folder: Path) -> Path:
    return write(folder / "a.jsonl", jsonl(TEXTS))


def write_gzip(folder: Path) -> Path:
    return write(folder / "a.jsonl.gz", gzip.compress(jsonl(TEXTS)))


def write_zstd(folder: Path) -> Path:
    return write(folder / "a.jsonl.zst", zst(jsonl(TEXTS)))


def write_zstd_of_many_frames(folder: Path) -> Path:
    data = jsonl(TEXTS)
    frames = [zst(data[i : i + 1000]) for i in range(0, len(data), 1000)]
    return write(folder / "a.jsonl.zst", SKIPPABLE_FRAME + SKIPPABLE_FRAME.join(frames) + SKIPPABLE_FRAME)


def write_windows_jsonl(folder: Path) -> Path:
    return write(folder / "a.jsonl", b"\xef\xbb\xbf" + jsonl(TEXTS).replace(b"\n", b"\r\n\r\n")[:-4])


def write_parquet(folder: Path) -> Path:
    pq.write_table(pa.table({"id": [1, 2, 3, 4], "text": TEXTS}), folder / "a.parquet", row_group_size=3)
    return folder / "a.parquet"


def write_data_set(folder: Path) -> Path:
    for name, half in ("1.arrow", TEXTS[:2]), ("0.arrow", TEXTS[2:]):
        table = pa.table({"text": half})
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    write(
        folder / "state.json", json.dumps({"_data_files": [{"filename": "1.arrow"}, {"filename": "0.arrow"}]}).encode()
    )
    return folder


def write_data_sets(folder: Path) -> Path:
    write(folder / "dataset_dict.json", b'{"splits": ["train"]}')
    (folder / "train").mkdir()
    write_data_set(folder / "train")
    return folder


def write_text_files(folder: Path) -> Path:
    write(folder / "1.txt", TEXTS[0].encode())
    write(folder / "2.md.gz", gzip.compress(TEXTS[1].encode()))
    (folder / "3").mkdir()
    write(folder / "3" / "a.txt.zst", zst(TEXTS[2].encode()))
    write(folder / "3" / "b.txt", b"\xef\xbb\xbf" + TEXTS[3].encode())
    write(folder / "README.md", b"not a document")
    write(folder / ".hidden.txt", b"not a document")
    write(folder / "picture.png", b"not a document")
    return folder


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


WRITERS = [
    write_jsonl,
    write_gzip,
    write_zstd,
    write_zstd_of_many_frames,
    write_windows_jsonl,
    write_parquet,
    write_data_set,
    write_data_sets,
    write_text_files,
]


@pytest.mark.parametrize("writer", WRITERS)
def test_every_kind_of_source_gives_the_same_documents_twice(tmp_path: Path, writer: Callable[[Path], Path]) -> None:
    documents = texts(writer(tmp_path))
    for _ in range(2):
        assert [text.decode() for text in documents] == TEXTS
        assert documents.done_bytes == documents.total_bytes > 0


def test_sources_are_read_in_the_order_given(tmp_path: Path) -> None:
    first, second = write(tmp_path / "b.txt", b"b"), write(tmp_path / "a.txt", b"a")
    assert read(first, second) == ["b", "a"]


@given(st.lists(st.binary(max_size=5).map(lambda data: data.replace(b"\0", b"\n"))))
def test_lines_do_not_depend_on_how_the_bytes_come(chunks: list[bytes]) -> None:
    assert list(_lines(chunks)) == b"".join(chunks).split(b"\n")


GOOD = b'{"text": "good"}\n'
BAD_LINES = [
    ("invalid UTF-8", b'{"text": "\xff"}', "byte 0xff is not UTF-8. Convert it"),
    ("invalid UTF-8", b'{"text": "\\ud800"}', "half a surrogate pair"),
    ("empty document", b'{"text": " \\n"}', "the document is empty. Remove it"),
    ("not JSON", b'{"text": "a}', "not JSON (Unterminated string starting at at column 10)"),
    ("not JSON", b'["text"]', "not a JSON object"),
    ("not JSON", b"[" * 100_000, "not readable as JSON"),
    ("not JSON", b'{"text": ' + b"1" * 5000 + b"}", "not readable as JSON"),
    ("missing field", b'{"url": 1, "body": "a"}', 'no field "text" (found: body, url). Name it with --text-field'),
    ("not a text", b'{"text": null}', 'field "text" is null, not a text'),
    ("not a text", b'{"text": [1]}', 'field "text" is of type list, not a text'),
]


@pytest.mark.parametrize(("reason", "line", "says"), BAD_LINES)
def test_a_bad_line_is_an_error_with_file_and_line_or_is_counted(
    tmp_path: Path, reason: str, line: bytes, says: str
) -> None:
    path = write(tmp_path / "a.jsonl", GOOD * 2 + line + b"\n" + GOOD)
    with pytest.raises(CorpusError) as error:
        read(path)
    assert str(error.value).startswith(f"{path} line 3: ")
    assert says in str(error.value)
    assert str(error.value).endswith(", or pass --skip-bad to leave such documents out (they are counted).")
    documents = texts(path, skip_bad=True)
    assert list(documents) == list(documents) == [b"good"] * 3
    assert documents.skipped == {reason: 1}


def test_a_bad_text_file_is_an_error_with_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"a\.txt: byte 0xfe in line 3 is not UTF-8\. Convert it, or pass --skip-bad"):
        read(write(tmp_path / "a.txt", b"one\ntwo\nthree \xfe"))
    with pytest.raises(CorpusError, match=r"b\.txt: the document is empty\."):
        read(write(tmp_path / "b.txt", b"\n"))


def test_a_bad_row_is_an_error_with_file_and_row_or_is_counted(tmp_path: Path) -> None:
    offsets = pa.array([0, 1, 2, 3, 3], pa.int32()).buffers()[1]
    column = pa.StringArray.from_buffers(4, offsets, pa.py_buffer(b"a\xffb"))
    pq.write_table(pa.table({"text": pa.chunked_array([column, pa.array(["c", None])])}), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match=r"a\.parquet row 2: byte 0xff in line 1 is not UTF-8"):
        read(tmp_path / "a.parquet")
    documents = texts(tmp_path / "a.parquet", skip_bad=True)
    assert list(documents) == [b"a", b"b", b"c"]
    assert documents.skipped == {"invalid UTF-8": 1, "empty document": 1, "not a text": 1}


def test_the_field_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl(TEXTS, field="body"))
    pq.write_table(pa.table({"body": TEXTS}), tmp_path / "a.parquet")
    assert read(path, tmp_path / "a.parquet", text_field="body") == TEXTS * 2
    with pytest.raises(CorpusError, match=r'a\.parquet: no field "text" \(found: body\)\. Name it with --text-field'):
        read(tmp_path / "a.parquet", skip_bad=True)


@pytest.mark.parametrize("writer", [write_gzip, write_zstd, write_zstd_of_many_frames, write_parquet])
def test_a_file_cut_short_is_an_error_wherever_it_is_cut(tmp_path: Path, writer: Callable[[Path], Path]) -> None:
    path = writer(tmp_path)
    whole = path.read_bytes().removesuffix(SKIPPABLE_FRAME)
    for kept in (1, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(CorpusError, match=r"(damaged or cut short|not readable as parquet).*Fetch it again\."):
            read(path, skip_bad=True)


def test_a_source_that_cannot_be_read_is_refused_before_anything_is(tmp_path: Path) -> None:
    for source, says in [
        (tmp_path / "none", "no such file or folder"),
        (write(tmp_path / "a.pdf", b""), "not a kind of text we read"),
        (write(tmp_path / "a.parquet.gz", b""), "not a kind of text we read"),
        (tmp_path, "the folder holds no .txt"),
    ]:
        with pytest.raises(CorpusError, match=says):
            texts(source)


def test_a_data_set_of_several_splits_asks_for_one(tmp_path: Path) -> None:
    write(tmp_path / "dataset_dict.json", b'{"splits": ["train", "test"]}')
    with pytest.raises(CorpusError, match=r"has splits train, test\. Name one: .*train\."):
        texts(tmp_path)
    write(tmp_path / "dataset_dict.json", b"{}")
    with pytest.raises(CorpusError, match=r"dataset_dict\.json: not the description of a data set"):
        texts(tmp_path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CorpusError, match=r"needs pyarrow\. Install predistill\[parquet\]\."):
        read(path)
