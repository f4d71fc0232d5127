from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predistill.store import codec


@given(st.data(), st.sampled_from(list(codec.DTYPES.values())), st.sampled_from([0, 1, 2, 255, 5000]))
def test_every_array_comes_back_and_encodes_to_the_same_bytes_again(data: Any, dtype: np.dtype[Any], size: int) -> None:
    largest = data.draw(st.integers(0, np.iinfo(dtype).max))
    values = np.random.default_rng(size).integers(0, largest, size, endpoint=True, dtype=dtype)
    number, payload = codec.encode(values)
    assert (number, payload) == codec.encode(values.copy())
    assert len(payload) <= values.nbytes
    out = np.empty(size, dtype)
    codec.decode_into(number, payload, dtype=dtype, out=out)
    np.testing.assert_array_equal(out, values)


def test_each_codec_wins_somewhere() -> None:
    rng = np.random.default_rng(0)
    assert codec.encode(rng.integers(0, 256, 64, dtype=np.uint8))[0] == codec.RAW
    assert codec.encode(np.full(256, 100, np.uint8))[0] == codec.ZSTD
    assert codec.encode(rng.zipf(1.5, 9000).astype(np.uint32))[0] == codec.PCO


def test_narrow_values_are_read_into_a_wider_array_and_wide_ones_are_refused_by_a_narrower() -> None:
    values = np.arange(100, dtype=np.uint16)
    number, payload = codec.encode(values)
    out = np.empty(100, np.uint32)
    codec.decode_into(number, payload, dtype=values.dtype, out=out)
    np.testing.assert_array_equal(out, values)
    with pytest.raises(ValueError, match="2 bytes wide"):
        codec.decode_into(number, payload, dtype=values.dtype, out=np.empty(100, np.uint8))


@pytest.mark.parametrize("number", codec.CODECS)
@pytest.mark.parametrize("size", [99, 101])
def test_a_payload_that_holds_another_number_of_values_is_an_error(number: int, size: int) -> None:
    values = np.random.default_rng(3).integers(0, 9, 100).astype(np.uint16)
    payload = {
        codec.RAW: values.tobytes(),
        codec.ZSTD: codec.zstandard.ZstdCompressor().compress(values.tobytes()),
        codec.PCO: codec.standalone.simple_compress(values, codec.ChunkConfig()),
        codec.PARTS: codec.encode_parts(values, [30, 0, 70])[1],
    }[number]
    out = np.empty(100, np.uint16)
    codec.decode_into(number, payload, dtype=values.dtype, out=out)
    np.testing.assert_array_equal(out, values)
    with pytest.raises(ValueError):
        codec.decode_into(number, payload, dtype=values.dtype, out=np.empty(size, np.uint16))


@pytest.mark.parametrize("number", [codec.ZSTD, codec.PCO])
def test_bytes_that_no_encoder_made_are_an_error(number: int) -> None:
    with pytest.raises(ValueError, match=codec.CODECS[number]):
        codec.decode_into(number, b"no encoder made this", dtype=np.dtype("<u2"), out=np.empty(9, np.uint16))


def test_an_unknown_codec_is_an_error() -> None:
    with pytest.raises(ValueError, match="codec 4 is not one of 0 raw, 1 zstd, 2 pco, 3 parts"):
        codec.decode_into(4, b"1234", dtype=np.dtype("<u1"), out=np.empty(4, np.uint8))


def test_a_zstd_frame_that_says_it_is_huge_is_an_error_before_anything_is_allocated() -> None:
    bomb = codec.zstandard.ZstdCompressor().compress(bytes(1 << 24))
    with pytest.raises(ValueError, match="zstd: more than 18 bytes"):
        codec.decode_into(codec.ZSTD, bomb, dtype=np.dtype("<u2"), out=np.empty(9, np.uint16))
