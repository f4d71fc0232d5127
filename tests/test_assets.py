"""Laws about what the package carries: the text sample is clean, bilingual and small, and NOTICE accounts for it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import zstandard

from predistill.assets import sample_path

NOTICE = Path(__file__).parents[1] / "NOTICE"


@pytest.fixture(scope="module")
def sample() -> list[dict[str, str]]:
    with sample_path().open("rb") as file:
        lines = zstandard.ZstdDecompressor().stream_reader(file).read().decode()
    return [json.loads(line) for line in lines.splitlines()]


def test_every_document_is_text_with_a_source(sample: list[dict[str, str]]) -> None:
    assert len(sample) > 300
    for document in sample:
        assert set(document) == {"text", "source"}
        assert document["text"] == document["text"].strip() != ""
        assert not [c for c in document["text"] if ord(c) < 32 and c != "\n"]
        assert len(document["text"].encode()) < 21_000


def test_no_document_stands_twice(sample: list[dict[str, str]]) -> None:
    assert len({document["text"] for document in sample}) == len(sample)


def test_every_source_stands_in_the_notice_with_its_documents_and_bytes(sample: list[dict[str, str]]) -> None:
    notice = NOTICE.read_text(encoding="utf-8")
    documents = Counter(document["source"] for document in sample)
    size = Counter[str]()
    for document in sample:
        size[document["source"]] += len(document["text"].encode())
    for source, count in documents.items():
        assert f"{source} ({count} documents, {size[source]:,} bytes" in notice
    assert f"{len(sample):,} documents, {size.total():,} bytes" in notice


def test_a_quarter_to_a_third_of_the_text_is_chinese(sample: list[dict[str, str]]) -> None:
    size = Counter[bool]()
    for document in sample:
        chinese = sum("\u4e00" <= c <= "\u9fff" for c in document["text"]) > 0.3 * len(document["text"])
        assert chinese == document["source"].endswith("-zh")
        size[chinese] += len(document["text"].encode())
    assert 0.25 < size[True] / size.total() < 0.34


def test_the_sample_costs_the_wheel_less_than_3_megabytes() -> None:
    assert sample_path().stat().st_size < 3_000_000
