"""What a manifest and a writer's part hold, as far as the code relies on it: whoever reads one need not look again."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

__all__ = ["check_content"]

Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]
Hex = Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$")]
StoreId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class _Permutation(TypedDict):
    sha256: Hex
    size: Count


class _Shard(TypedDict):
    name: Annotated[str, Field(pattern=r"^[0-9]{5,}-[0-9]{6,}\.pds$")]
    rows: Count
    bytes: Count
    positions: Count
    entries: Count
    crc32c: Hex


class _ShardOfPart(_Shard):
    streams: dict[str, Count]


class _Part(TypedDict):
    store_id: StoreId
    writer: Count
    finished: bool
    row_len: Count | None
    permutation: _Permutation
    facts: dict[str, Any]
    shards: list[_ShardOfPart]


class _Index(TypedDict):
    bytes: Count
    crc32c: Hex


class _Totals(TypedDict):
    rows: Count
    rows_twice: Count
    positions: Count
    entries: Count
    bytes: Count
    bytes_by_stream: dict[str, Count]


class _Cut(TypedDict):
    k: NotRequired[Count]
    draws: NotRequired[Count]


class _Manifest(TypedDict):
    store_id: StoreId
    kind: Literal["truncated", "sampled"]
    row_len: Count
    rows: Count
    streams: list[str]
    permutation: _Permutation
    grids: dict[str, Any]
    writers: list[Count]
    index: _Index
    shards: list[_Shard]
    totals: _Totals
    self_test: dict[str, Any]
    truncation: NotRequired[_Cut]
    sampling: NotRequired[_Cut]


_PART, _MANIFEST = TypeAdapter(_Part), TypeAdapter(_Manifest)


def check_content(content: dict[str, Any], *, manifest: bool) -> None:
    """`ValueError` (one clause) unless it is what a manifest, or a part, holds."""
    try:
        (_MANIFEST if manifest else _PART).validate_python(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
    if manifest and ("truncation" in content) == ("sampling" in content):
        raise ValueError("a store is truncated or sampled")
