"""A store whose checksums are all right and whose contents are not: taken apart, changed, and put together again."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import struct
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zstandard

from predistill.files import read_sealed_json
from predistill.store.index import ENTRY
from predistill.store.record import parse_head
from predistill.store.shard import FOOTER

HEAD = struct.Struct("<4sBBHQQII")
STREAM = struct.Struct("<HBBII")
HEADER = struct.Struct("<8sHHI16sII20s")
TAIL = struct.Struct("<8sQQQIII")
INDEX_HEADER = struct.Struct("<8s16sQI24s")
EXTREMES = (0, 1, 2, 3, 5, 7, 31, 33, 255, 256, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 2**31, 2**63, 2**70, -(2**63), 0.5, -0.0, 1e308, float("inf"), float("nan"), "",
    "0", "00", "ff" * 16, "x" * 5000, "../../../etc/passwd", "\ud7ff\x00", [], [None], [[]], [1, 0], {}, {"a": 1},
    {"name": 3},
)  # fmt: skip


def crc(data: bytes) -> bytes:
    return struct.pack("<I", google_crc32c.value(data))


@dataclass
class Pieces:
    """One shard's store, open for change; `write` makes every checksum right again."""

    source: Path
    manifest: dict[str, Any]
    part: dict[str, Any]
    header: list[Any]
    records: list[bytes]
    lines: np.ndarray
    tail: list[Any] | None
    index_header: list[Any]
    entries: np.ndarray
    permutation: bytes
    raw_manifest: bytes | None = None
    raw_part: bytes | None = None

    @classmethod
    def of(cls, source: Path) -> Pieces:
        manifest = read_sealed_json(source / "manifest.json")
        (shard,) = (source / "shards").iterdir()
        data = shard.read_bytes()
        tail = list(TAIL.unpack_from(data, len(data) - 48))
        lines = np.frombuffer(data[tail[1] : -48], FOOTER).copy()
        index = (source / "index.bin").read_bytes()
        return cls(
            source=source,
            manifest=manifest,
            part=read_sealed_json(source / "parts" / "part-00000.json"),
            header=list(HEADER.unpack_from(data)),
            records=[data[line["offset"] :][: line["bytes"]] for line in lines],
            lines=lines,
            tail=None,
            index_header=list(INDEX_HEADER.unpack_from(index)),
            entries=np.frombuffer(index[64:-4], ENTRY).copy(),
            permutation=(source / "id_permutation.npy").read_bytes(),
        )

    def copy(self) -> Pieces:
        return deepcopy(self)

    def write(self, path: Path) -> None:
        shutil.copytree(self.source, path)
        (path / "id_permutation.npy").write_bytes(self.permutation)
        body, footer = b"".join(self.records), self.lines.tobytes()
        records_crc, index_crc = google_crc32c.value(body), google_crc32c.value(footer)
        size = 64 + len(body) + len(footer) + 48
        tail = self.tail or [b"PDS-TAIL", 64 + len(body), size, len(self.lines), index_crc, records_crc, 0]
        packed = TAIL.pack(*tail)
        head = HEADER.pack(*self.header)
        (path / "shards" / "00000-000000.pds").write_bytes(head + crc(head) + body + footer + packed + crc(packed))
        top = INDEX_HEADER.pack(*self.index_header)
        page = self.entries.tobytes()
        index = top + crc(top) + page + crc(page)
        (path / "index.bin").write_bytes(index)
        for content in (self.manifest, self.part):
            if isinstance(content.get("shards"), list) and content["shards"] and isinstance(content["shards"][0], dict):
                for name, right in (("bytes", tail[2]), ("rows", tail[3]), ("crc32c", f"{tail[5]:08x}")):
                    if content["shards"][0].get(name, ...) is not ... and not content.get("keep"):
                        content["shards"][0][name] = right
        if isinstance(self.manifest.get("index"), dict) and "crc32c" in self.manifest["index"]:
            self.manifest["index"]["crc32c"] = f"{google_crc32c.value(index):08x}"
        if self.permutation != (self.source / "id_permutation.npy").read_bytes():
            self.manifest["permutation"]["sha256"] = hashlib.sha256(self.permutation).hexdigest()
        for name, raw, content in (
            ("manifest.json", self.raw_manifest, self.manifest),
            ("parts/part-00000.json", self.raw_part, self.part),
        ):
            (path / name).write_bytes(raw or sealed({k: v for k, v in content.items() if k != "keep"}))


def sealed(content: dict[str, Any]) -> bytes:
    """As `files.sealed_json`, of contents that it would not write."""
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    whole = {**content, "crc32c": f"{google_crc32c.value(canonical):08x}"}
    return (json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode()


def reseal_record(head: list[Any], table: list[list[int]], payloads: list[bytes]) -> bytes:
    """A record of any head, table and streams, its two checksums right."""
    top = HEAD.pack(*head) + b"".join(STREAM.pack(*line) for line in table)
    body = b"".join(payloads)
    return top + crc(top) + body + crc(body)


def taken_apart(data: bytes) -> tuple[list[Any], list[list[int]], list[bytes]]:
    record = parse_head(data)
    table = [[stream.id, stream.codec, stream.dtype, stream.bytes, stream.values] for stream in record.streams]
    payloads = [data[stream.start : stream.start + stream.bytes] for stream in record.streams]
    return list(HEAD.unpack_from(data)), table, payloads


def width(field: str) -> int:
    return {"B": 8, "H": 16, "I": 32, "Q": 64}[field]


def extreme(rng: random.Random, value: int, bits: int) -> int:
    """Another value for an unsigned field."""
    choice = rng.random()
    if choice < 0.4:
        return rng.choice(EXTREMES) % (1 << bits)
    if choice < 0.7:
        return (value + rng.choice((-2, -1, 1, 2, 8, -8, 32, 100))) % (1 << bits)
    return value ^ (1 << rng.randrange(bits))


# ---- what is changed


def change_record(pieces: Pieces, rng: random.Random) -> None:
    number = rng.randrange(len(pieces.records))
    head, table, payloads = taken_apart(pieces.records[number])
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        match rng.randrange(5):
            case 0:
                field = rng.randrange(1, 8)
                head[field] = extreme(rng, head[field], width("_BBHQQII"[field]))
            case 1:
                line = rng.choice(table)
                field = rng.randrange(5)
                line[field] = extreme(rng, line[field], width("HBBII"[field]))
            case 2:
                stream = rng.randrange(len(table))
                data = bytearray(payloads[stream] or b"\0")
                for _ in range(rng.choice((1, 1, 2, 8))):
                    data[rng.randrange(len(data))] = rng.choice((0, 255, rng.randrange(256)))
                payloads[stream] = bytes(data)
            case 3:
                stream = rng.randrange(len(table))
                data = payloads[stream]
                payloads[stream] = rng.choice(
                    (b"", data[: len(data) // 2], data + data, data + b"\0", rng.randbytes(40))
                )
                table[stream][3] = len(payloads[stream])
            case 4:
                stream = rng.randrange(len(table))
                payloads[stream] = bomb(rng)
                table[stream][1:4] = [1, table[stream][2], len(payloads[stream])]
    pieces.records[number] = reseal_record(head, table, payloads)
    offset = 64
    for i, data in enumerate(pieces.records):
        pieces.lines[i]["offset"], pieces.lines[i]["bytes"] = offset, len(data)
        pieces.lines[i]["crc"] = google_crc32c.value(data)
        pieces.entries[pieces.lines[i]["row"]]["offset"], pieces.entries[pieces.lines[i]["row"]]["bytes"] = (
            offset,
            len(data),
        )
        offset += len(data)
    if rng.random() < 0.5:  # let index and record agree
        for i, field in ((6, "positions"), (7, "entries")):
            pieces.lines[number][field] = head[i] % (1 << 32)


def bomb(rng: random.Random) -> bytes:
    """Some bytes that become many."""
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=False).compressobj()
    blocks = rng.choice((1, 1 << 8, 1 << 14))
    data = b"".join(compressor.compress(bytes(1 << 14)) for _ in range(blocks)) + compressor.flush()
    if rng.random() < 0.5:
        return data
    # A frame that names its size, and need not hold it: magic, descriptor (8 bytes of size, one segment), size.
    return b"\x28\xb5\x2f\xfd\xe0" + rng.choice((1 << 31, 1 << 40, (1 << 64) - 3)).to_bytes(8, "little") + data[6:]


def change_header(pieces: Pieces, rng: random.Random) -> None:
    field = rng.choice((1, 2, 3, 4, 5, 6, 7))
    if field in (4, 7):
        pieces.header[field] = rng.randbytes(16 if field == 4 else 20)
    else:
        pieces.header[field] = extreme(rng, pieces.header[field], {1: 16, 2: 16, 3: 32, 5: 32, 6: 32}[field])


def change_tail(pieces: Pieces, rng: random.Random) -> None:
    body, footer = sum(map(len, pieces.records)), pieces.lines.nbytes
    size = 64 + body + footer + 48
    lines, records = google_crc32c.value(pieces.lines.tobytes()), google_crc32c.value(b"".join(pieces.records))
    tail: list[Any] = [b"PDS-TAIL", 64 + body, size, len(pieces.lines), lines, records, 0]
    if rng.random() < 0.4:  # lengths that add up
        rows = rng.choice((0, 1, len(pieces.lines) - 1, len(pieces.lines) + 1, (size - 48) // 32))
        tail[1], tail[3] = size - 48 - 32 * rows, rows
    else:
        field = rng.randrange(1, 7)
        tail[field] = extreme(rng, tail[field], {1: 64, 2: 64, 3: 64}.get(field, 32))
    pieces.tail = tail
    if rng.random() < 0.5:
        pieces.manifest["keep"] = pieces.part["keep"] = True


def change_footer(pieces: Pieces, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 3))):
        line, field = rng.randrange(len(pieces.lines)), rng.choice(FOOTER.names or ())
        pieces.lines[line][field] = extreme(rng, int(pieces.lines[line][field]), 8 * FOOTER[field].itemsize)


def change_index(pieces: Pieces, rng: random.Random) -> None:
    if rng.random() < 0.2:
        field = rng.choice((1, 2, 3))
        old = pieces.index_header[field]
        pieces.index_header[field] = rng.randbytes(16) if field == 1 else extreme(rng, old, {2: 64, 3: 32}[field])
        return
    for _ in range(rng.choice((1, 1, 4))):
        line, field = rng.randrange(len(pieces.entries)), rng.choice(ENTRY.names or ())
        pieces.entries[line][field] = extreme(rng, int(pieces.entries[line][field]), 8 * ENTRY[field].itemsize)


def change_json(pieces: Pieces, rng: random.Random) -> None:
    name = rng.choice(("manifest", "manifest", "part"))
    content = getattr(pieces, name)
    content["keep"] = True
    if rng.random() < 0.05:
        depth = rng.choice((200, 900, 3000, 100_000))
        data = b'{"format": ' + b"[" * depth + b"]" * depth + b"}"
        setattr(pieces, f"raw_{name}", data)
        return
    for _ in range(rng.choice((1, 1, 2))):
        at: Any = content
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            keys = [key for key in keys if key != "keep"]
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.75:
                at = at[key]
                continue
            match rng.randrange(4):
                case 0:
                    del at[key]
                case 1 if isinstance(at, dict):
                    at[rng.choice(("new", "k", "kind", key + "x"))] = deepcopy(rng.choice(VALUES))
                case _:
                    at[key] = deepcopy(rng.choice(VALUES))
            break


def change_permutation(pieces: Pieces, rng: random.Random) -> None:
    data = bytearray(pieces.permutation)
    for _ in range(rng.choice((1, 2, 5))):
        place = rng.randrange(128) if rng.random() < 0.7 else rng.randrange(len(data))
        data[place] = rng.choice((0, 255, 39, 40, 57, rng.randrange(256)))
    changed = bytes(data)
    if rng.random() < 0.3:
        changed = changed.replace(b"(1024,)", rng.choice((b"(9**99,)", b"(-1,)", b"(1024,1)"))[:7].ljust(7))
    pieces.permutation = rng.choice((changed, changed, changed[: rng.randrange(len(changed))], changed + b"\0\0\0\0"))


CHANGES = (
    change_record, change_record, change_record, change_header, change_tail, change_footer, change_index, change_json,
    change_json, change_permutation,
)  # fmt: skip
