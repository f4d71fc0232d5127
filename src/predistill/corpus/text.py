"""Texts of sources: a whole file, or one field of a record, as valid UTF-8 that is not empty."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predistill.corpus.sources import BadDocument, Documents, not_utf8

__all__ = ["TextField", "texts"]


def texts(
    sources: str | Path | Sequence[str | Path], *, text_field: str = "text", skip_bad: bool = False
) -> Documents[bytes]:
    """The texts of `sources` as UTF-8 bytes, as they stand. Bad is what is not UTF-8, is empty, is not JSON or lacks
    the field `text_field`."""
    return Documents(sources, TextField(text_field), skip_bad=skip_bad)


@dataclass(frozen=True)
class TextField:
    """The reading of records whose field `name` is the document."""

    name: str = "text"

    def columns(self, names: Sequence[str]) -> list[str]:
        if self.name not in names:
            raise self._missing(names)
        return [self.name]

    def record(self, record: Mapping[str, Any]) -> bytes:
        if self.name not in record:
            raise self._missing(record)
        value = record[self.name]
        if not isinstance(value, str):
            found = "null" if value is None else f"of type {type(value).__name__}"
            raise BadDocument("not a text", f'field "{self.name}" is {found}, not a text')
        try:
            return self.text(value.encode())
        except UnicodeEncodeError:
            found = f'field "{self.name}" holds half a surrogate pair, which is not UTF-8'
            raise BadDocument("invalid UTF-8", found) from None

    def text(self, raw: bytes) -> bytes:
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise not_utf8(raw, error) from None
        if not text or text.isspace():
            raise BadDocument("empty document", "the document is empty", "Remove it")
        return raw

    def _missing(self, found: Iterable[str]) -> BadDocument:
        listed = ", ".join(sorted(found))
        return BadDocument("missing field", f'no field "{self.name}" (found: {listed})', "Name it with --text-field")
