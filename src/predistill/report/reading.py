"""A JSON object as the report reads it: a key is checked where it is read, and an error names the file and the key."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from predistill.errors import RunError

__all__ = ["Reader"]


class Reader:
    """One object of a file, `at` its place in it; a key that is missing or of another type is a RunError."""

    def __init__(self, path: Path, content: Any, *, at: str = "") -> None:
        self.path, self.content, self._at = path, content, at

    @classmethod
    def of_file(cls, path: Path) -> Reader:
        """The object that a JSON file holds."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: not readable as JSON ({error}). Delete it and run its command again.") from None
        if not isinstance(content, Mapping):
            raise RunError(f"{path}: not a JSON object. Delete it and run its command again.")
        return cls(path, content)

    def get(self, dotted: str, kind: Callable[[Any], Any]) -> Any:
        """The value at `a.b.c` through `kind`; None where the file, the key or the value is absent."""
        value = self.content
        for key in dotted.split("."):
            if value is not None and not isinstance(value, Mapping):
                where = f"{self.path}: {self._at}{dotted}"
                raise RunError(f"{where} is not where it should be. Write this file again with its command.")
            value = None if value is None else value.get(key)
        if value is None:
            return None
        try:
            return kind(value)
        except (TypeError, ValueError, KeyError, AttributeError):
            shown = str(value)[:40]
            raise RunError(
                f"{self.path}: {self._at}{dotted} cannot be {shown}. Write this file again with its command."
            ) from None

    def need(self, dotted: str, kind: Callable[[Any], Any]) -> Any:
        """As `get`, for a key that must be there."""
        value = self.get(dotted, kind)
        if value is None:
            raise RunError(f"{self.path}: no {self._at}{dotted}. Write this file again with its command.")
        return value

    def inner(self, dotted: str) -> Reader:
        """The object there; empty where it is absent."""
        return Reader(self.path, self.get(dotted, _mapping) or {}, at=f"{self._at}{dotted}.")

    def each(self, dotted: str) -> list[Reader]:
        """The objects of the list there; none where it is absent."""
        items = self.get(dotted, _list) or []
        return [Reader(self.path, item, at=f"{self._at}{dotted}.{i}.") for i, item in enumerate(items)]

    def named(self, dotted: str) -> dict[str, Reader]:
        """The objects of the mapping there, by their names, which may hold dots; none where it is absent."""
        items = self.get(dotted, _mappings) or {}
        return {name: Reader(self.path, item, at=f"{self._at}{dotted}.{name}.") for name, item in items.items()}


def _list(value: Any) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise TypeError
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError
    return dict(value)


def _mappings(value: Any) -> dict[str, Mapping[str, Any]]:
    if not all(isinstance(item, Mapping) for item in _mapping(value).values()):
        raise TypeError
    return dict(value)
