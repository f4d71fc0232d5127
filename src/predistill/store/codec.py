"""One stream of a record: a one-dimensional array of unsigned integers to bytes and back.

Codecs: raw, zstd, pco (pcodec, an entropy coder over value bins). The smallest of the tried ones is written, ties to
the lowest number, so the bytes depend on the values and the libraries' versions alone. The codec parts is a number of
those one behind the other, for values whose statistics change at known places: u8 parts, then of each part codec u8,
values u32, bytes u32, then the parts.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone

__all__ = ["CODECS", "DTYPES", "DTYPE_NUMBERS", "PARTS", "PCO", "RAW", "ZSTD", "decode_into", "encode", "encode_parts"]

RAW, ZSTD, PCO, PARTS = 0, 1, 2, 3
CODECS = {RAW: "raw", ZSTD: "zstd", PCO: "pco", PARTS: "parts"}
_PART = struct.Struct("<BII")

DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 3: np.dtype("<u4"), 4: np.dtype("<u8")}
DTYPE_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}

_SMALL_VALUES = 4096  # zstd is tried only below this: on long streams pco won by 25 % or more wherever it was tried
# Neither deltas nor modes: ranks and differences have no such structure left (same bytes, a third less time).
_PCO = {"delta_spec": DeltaSpec.no_op(), "mode_spec": ModeSpec.classic(), "enable_8_bit": True}
# Against level 7, 9 saves .3 % of the bytes: for nothing on long streams, for a quarter more time on short ones.
_PCO_SHORT, _PCO_LONG = ChunkConfig(compression_level=7, **_PCO), ChunkConfig(compression_level=9, **_PCO)
_LONG_VALUES = 1 << 15


def encode(values: npt.NDArray[Any], *, small: int = _SMALL_VALUES) -> tuple[int, bytes]:
    """(codec, bytes) of the smallest encoding of a little-endian unsigned array; zstd is tried up to `small` values."""
    values = np.ascontiguousarray(values)
    raw = values.tobytes()
    encodings = [(RAW, raw)]
    if 0 < len(values) <= small:
        # No frame size, no checksum: the stream table has the length, the record the CRC. Level 1, because pco wins all
        # but the shortest and the constant streams, and those are as short at every level (1: a third of 9's time).
        zstd = zstandard.ZstdCompressor(level=1, write_content_size=False, write_checksum=False)
        encodings.append((ZSTD, zstd.compress(raw)))
    if len(values):
        encodings.append(
            (PCO, standalone.simple_compress(values, _PCO_LONG if len(values) >= _LONG_VALUES else _PCO_SHORT))
        )
    return min(encodings, key=lambda encoding: (len(encoding[1]), encoding[0]))


def encode_parts(values: npt.NDArray[Any], sizes: Sequence[int]) -> tuple[int, bytes]:
    """(codec, bytes) of `values`, cut into parts of `sizes`, each in its own encoding."""
    ends = np.cumsum(sizes).tolist()
    assert ends[-1] == len(values)
    assert len(sizes) < 256
    parts = [encode(values[end - size : end], small=0) for size, end in zip(sizes, ends, strict=True)]
    table = b"".join(_PART.pack(codec, size, len(payload)) for size, (codec, payload) in zip(sizes, parts, strict=True))
    return PARTS, b"".join((bytes([len(parts)]), table, *(payload for _, payload in parts)))


def decode_into(codec: int, payload: bytes, *, dtype: np.dtype[Any], out: npt.NDArray[Any]) -> None:
    """Fill `out` (contiguous) with the values of `payload`, which were written as `dtype`.

    Raises `ValueError` when the payload does not hold exactly `len(out)` values or the codec is unknown.
    """
    if dtype.itemsize > out.itemsize:
        raise ValueError(f"its values are {dtype.itemsize} bytes wide; this predistill reads {out.itemsize}")
    if out.dtype != dtype:  # a row whose values are narrower than its neighbours'
        part = np.empty(len(out), dtype)
        decode_into(codec, payload, dtype=dtype, out=part)
        out[:] = part
        return
    if codec == PARTS:
        _decode_parts(payload, dtype=dtype, out=out)
        return
    if codec == PCO:
        try:
            progress = standalone.simple_decompress_into(payload, out)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"pco: {error}") from None
        if progress.n_processed != len(out) or not progress.finished:
            raise ValueError(f"pco: not exactly {len(out):,} values")
        return
    if codec == ZSTD:
        try:
            if zstandard.frame_content_size(payload) > out.nbytes:  # it would be believed, and allocated
                raise ValueError(f"zstd: more than {out.nbytes:,} bytes")
            payload = zstandard.ZstdDecompressor().decompress(payload, max_output_size=out.nbytes)
        except zstandard.ZstdError as error:
            raise ValueError(f"zstd: {error}") from None
    elif codec != RAW:
        raise ValueError(f"codec {codec} is not one of {', '.join(f'{n} {name}' for n, name in CODECS.items())}")
    if len(payload) != out.nbytes:
        raise ValueError(f"{len(payload):,} bytes, expected {out.nbytes:,}")
    out[:] = np.frombuffer(payload, dtype)


def _decode_parts(payload: bytes, *, dtype: np.dtype[Any], out: npt.NDArray[Any]) -> None:
    count = payload[0] if payload else 0
    start, end = 1 + count * _PART.size, 0
    if len(payload) < start:
        raise ValueError("parts: the table is cut off")
    for codec, values, size in _PART.iter_unpack(payload[1:start]):
        if codec == PARTS or end + values > len(out):
            raise ValueError(f"parts: not {len(out):,} values")
        decode_into(codec, payload[start : start + size], dtype=dtype, out=out[end : end + values])
        start, end = start + size, end + values
    if end != len(out) or start != len(payload):
        raise ValueError(f"parts: not exactly {len(out):,} values")
