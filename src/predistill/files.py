"""Writing so that a kill at any moment leaves either the old file or the new one, and reading what was sealed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import google_crc32c

__all__ = ["fsync_dir", "parse_sealed_json", "read_sealed_json", "sealed_json", "write_atomic", "write_sealed_json"]


def fsync_dir(path: Path) -> None:
    """Make a rename inside `path` durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to a temporary name, fsync, rename, fsync the directory."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_dir(path.parent)


def write_sealed_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` with a CRC32C over its own canonical bytes under the key `crc32c`."""
    write_atomic(path, sealed_json(content))


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Read what `write_sealed_json` wrote; `ValueError` as `parse_sealed_json`."""
    return parse_sealed_json(path.read_bytes())


def sealed_json(content: dict[str, Any]) -> bytes:
    """`content` as JSON that carries its own checksum."""
    assert "crc32c" not in content
    return _spelled({**content, "crc32c": _crc(content)})


def parse_sealed_json(data: bytes) -> dict[str, Any]:
    """The content of `sealed_json`.

    Raises `ValueError` (one clause, no path) when it is not JSON or its CRC32C does not match: a damaged file.
    """
    try:
        content = json.loads(data)
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        # The checksum covers what the text means: 5e-06 turned into 5E-06 would pass. So the spelling is checked too.
        if _spelled(content) != data or content.pop("crc32c", None) != _crc(content):
            raise ValueError("its checksum does not match its content")
    except (UnicodeError, json.JSONDecodeError) as error:
        raise ValueError(f"not readable as JSON ({error})") from None
    except RecursionError:
        raise ValueError("not readable as JSON (it is nested too deep)") from None
    return content


def _spelled(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _crc(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    return f"{google_crc32c.value(canonical):08x}"
