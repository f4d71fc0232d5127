from __future__ import annotations

import dataclasses
import struct
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predistill.store.decode import decode_rows
from predistill.store.grids import GRIDS, Grid
from predistill.store.raw import Form
from predistill.store.record import Record, pack, parse
from predistill.store.rows import RowTargets
from predistill.store.streams import encode_row
from tests.store.made import PERMUTATION, VOCABULARY, full_logprob, sampled_row, truncated_row

RANK_OF = np.argsort(PERMUTATION).astype(np.uint32)
ID_OF = PERMUTATION.astype(np.int32)


def encode(targets: RowTargets, grids: dict[str, Grid] = GRIDS) -> bytes:
    return encode_row(targets, token_hash=1, rank_of_V=RANK_OF, grids=grids)


def decode(*data: bytes, id_of: np.ndarray = ID_OF, grids: dict[str, Grid] = GRIDS, **options: Any) -> RowTargets:
    records = [(parse(each), each) for each in data]
    return decode_rows(
        records,
        row_ids=[record.row_id for record, _ in records],
        form=Form.of(records[0][0], vocab_size=len(id_of)),
        id_of_rank_V=id_of,
        grids=grids,
        where=lambda i: f"record {i}: ",
        **options,
    )


def one_position(**changes: Any) -> RowTargets:
    fields = {
        "row_ids": np.array([0]),
        "positions": 1,
        "length_N": np.array([3], np.int32),
        "ids_E": np.array([5, 9, 2], np.int32),
        "logprob_E": np.log(np.array([0.5, 0.3, 0.1], np.float32)),
        "log_rest_N": np.log(np.array([0.1], np.float32)),
    }
    return RowTargets(**(fields | changes))


@given(
    row=st.integers(0, 10_000),
    positions=st.integers(1, 40),
    p=st.sampled_from([0.01, 0.5, 0.95, 1.0]),
    k=st.sampled_from([1, 7, 100, VOCABULARY]),
)
def test_truncated_targets_come_back_within_the_grid_and_in_their_order(
    row: int, positions: int, p: float, k: int
) -> None:
    given_ = truncated_row(row, positions=positions, p=p, k=k)
    found = decode(encode(given_))
    for exact in ("row_ids", "positions", "length_N", "ids_E"):
        np.testing.assert_array_equal(getattr(found, exact), getattr(given_, exact))
    # Half a step of the grid, and as much again for the shift that puts the kept mass right.
    assert np.abs(found.logprob_E - given_.logprob_E).max(initial=0) <= 1 / 64 + 1 / 512
    has_target = given_.length_N > 0
    rest = np.exp(given_.log_rest_N.astype(np.float64))
    found_rest = np.exp(found.log_rest_N.astype(np.float64))
    # Relative in the rest and in the kept part; 1e-6: the float32 of the given log_rest itself
    bound = rest * np.abs(1 - rest) / 512 * 1.01 + 1e-6
    assert (np.abs(found_rest - rest)[has_target] <= bound[has_target]).all()
    for field in ("label_logprob_N", "entropy_N", "logit_std_N"):
        assert np.abs(getattr(found, field) - getattr(given_, field)).max() <= 1 / 512 + 1e-5


@given(row=st.integers(0, 10_000), p=st.sampled_from([0.1, 0.95, 0.9999]), k=st.sampled_from([1, 30, VOCABULARY]))
def test_the_kept_mass_and_the_rest_add_up_to_one(row: int, p: float, k: int) -> None:
    found = decode(encode(truncated_row(row, p=p, k=k)))
    position_E = np.repeat(np.arange(found.positions), found.length_N)
    kept_N = np.bincount(position_E, np.exp(found.logprob_E.astype(np.float64)), minlength=found.positions)
    total_N = kept_N + np.exp(found.log_rest_N.astype(np.float64))
    np.testing.assert_allclose(total_N[found.length_N > 0], 1.0, atol=2e-6)
    assert found.logprob_E.max() <= 0.0


def test_a_whole_distribution_has_a_rest_of_exactly_nothing() -> None:
    found = decode(
        encode(
            one_position(
                logprob_E=np.log(np.array([0.6, 0.3, 0.1], np.float32)), log_rest_N=np.array([-np.inf], np.float32)
            )
        )
    )
    assert found.log_rest_N[0] == -np.inf
    np.testing.assert_allclose(np.exp(found.logprob_E.astype(np.float64)).sum(), 1.0, atol=1e-6)


def test_equal_quantised_probabilities_keep_the_order_of_their_ids() -> None:
    ids = np.random.default_rng(0).permutation(VOCABULARY)[:200].astype(np.int32)
    targets = one_position(
        length_N=np.array([200], np.int32),
        ids_E=ids,
        logprob_E=np.full(200, np.log(1 / 250), np.float32),
        log_rest_N=np.log(np.array([0.2], np.float32)),
    )
    np.testing.assert_array_equal(decode(encode(targets)).ids_E, ids)


def test_impossible_entries_are_clamped_to_the_grids_end_and_stay_impossible() -> None:
    found = decode(
        encode(
            one_position(
                logprob_E=np.array([-0.1, -5000.0, -np.inf], np.float32),
                log_rest_N=np.log(np.array([0.0951626], np.float32)),
            )
        )
    )
    assert abs(found.logprob_E[0] + 0.1) < 1e-3
    assert (found.logprob_E[1:] < -1000).all()
    only_impossible = decode(encode(one_position(logprob_E=np.full(3, -np.inf, np.float32))))
    assert np.isfinite(only_impossible.logprob_E).all()


@given(row=st.integers(0, 10_000), draws=st.sampled_from([1, 50, 70_000]), tau=st.sampled_from([None, 0.7, 2.0]))
def test_sampled_targets_are_lossless_as_sets_in_ascending_rank_and_their_log_probabilities_on_the_grid(
    row: int, draws: int, tau: float | None
) -> None:
    given_ = sampled_row(row, positions=8, draws=draws, tau=tau)
    found = decode(encode(given_))
    position_E = np.repeat(np.arange(8), given_.length_N)
    order = np.lexsort((RANK_OF[given_.ids_E], position_E))
    np.testing.assert_array_equal(found.length_N, given_.length_N)
    np.testing.assert_array_equal(found.ids_E, given_.ids_E[order])
    np.testing.assert_array_equal(found.count_E, given_.count_E[order])
    assert found.count_E.reshape(-1).sum() == 8 * draws
    if tau is None:
        assert found.logprob_E is None
        assert found.normaliser_N is None
    else:
        assert np.abs(found.logprob_E - given_.logprob_E[order]).max() <= 1 / 128 + 1e-5
        assert np.abs(found.normaliser_N - given_.normaliser_N).max() <= 1 / 512 + 1e-5


def test_many_records_decode_to_what_each_decodes_to_alone() -> None:
    data = [encode(truncated_row(row, k=k)) for row, k in enumerate([3, VOCABULARY, 1, 100])]  # lengths u8 and u16
    together = decode(*data)
    for i, each in enumerate(data):
        alone, part = decode(each), together.row(i)
        for field in dataclasses.fields(RowTargets):
            np.testing.assert_array_equal(getattr(part, field.name), getattr(alone, field.name), err_msg=field.name)


def test_only_the_asked_fields_are_decoded() -> None:
    found = decode(encode(truncated_row(0)), fields=["entropy_N"])
    assert found.entropy_N is not None
    assert found.label_logprob_N is None
    assert found.logit_std_N is None


def test_a_record_laid_out_by_hand_as_the_format_says_is_read() -> None:
    """docs/formats.md, with raw streams: two positions, of 2 and 0 entries."""
    table = b"".join(
        struct.pack("<HBBII", *line) for line in [(1, 0, 1, 2, 2), (2, 0, 3, 8, 2), (3, 0, 2, 4, 2), (4, 0, 2, 4, 2)]
    )
    head = struct.pack("<4sBBHQQII", b"PDRC", 2, 1, 4, 9, 0xABCD, 2, 2) + table
    body = (
        struct.pack("<BB", 2, 0) + struct.pack("<II", 4, 0) + struct.pack("<HH", 32, 64) + struct.pack("<HH", 32768, 0)
    )
    data = head + struct.pack("<I", google_crc32c.value(head)) + body + struct.pack("<I", google_crc32c.value(body))
    found = decode(data)
    assert found.row_ids.tolist() == [9]
    assert found.length_N.tolist() == [2, 0]
    assert found.ids_E.tolist() == [PERMUTATION[4], PERMUTATION[0]]
    kept = np.exp([-0.5, -1.5])  # q 32 and 32 + 64 on the 1/64 grid; the rest is 1/2 (logit -128 + 32768/256 = 0)
    np.testing.assert_allclose(np.exp(found.logprob_E), kept / kept.sum() / 2, rtol=1e-6)
    np.testing.assert_allclose(found.log_rest_N, [np.log(0.5), -128.0], rtol=1e-6)


def streams_of(data: bytes) -> tuple[Record, list[tuple[int, int, int, int, bytes]]]:
    record = parse(data)
    return record, [(s.id, s.codec, s.dtype, s.values, data[s.start : s.start + s.bytes]) for s in record.streams]


def packed_again(record: Record, streams: list[tuple[int, int, int, int, bytes]], **changes: int) -> bytes:
    fields = {name: getattr(record, name) for name in ("kind", "row_id", "token_hash", "positions", "entries")}
    return pack(**(fields | changes), streams=streams)


def test_an_unknown_stream_is_skipped() -> None:
    data = encode(truncated_row(0))
    record, streams = streams_of(data)
    newer = packed_again(record, [(200, 99, 99, 7, b"of a later minor version"), *streams])
    np.testing.assert_array_equal(decode(newer).logprob_E, decode(data).logprob_E)
    np.testing.assert_array_equal(decode(newer, data).row(0).ids_E, decode(data).ids_E)


def test_an_unknown_codec_in_a_needed_stream_is_an_error() -> None:
    record, streams = streams_of(encode(truncated_row(0)))
    streams[1] = (2, 9, *streams[1][2:])
    with pytest.raises(ValueError, match="record 0: stream ids: stream 2 uses the unknown codec 9"):
        decode(packed_again(record, streams))


def test_lengths_that_do_not_sum_to_the_entries_are_an_error() -> None:
    record, streams = streams_of(encode(truncated_row(0)))
    other = streams_of(encode(truncated_row(1)))[1]
    with pytest.raises(ValueError, match="record 1: its lengths sum to"):
        decode(encode(truncated_row(2)), packed_again(record, [other[0], *streams[1:]]))


def test_a_rank_outside_the_vocabulary_is_an_error_that_names_the_record() -> None:
    few = truncated_row(0, k=1)
    inside = dataclasses.replace(few, ids_E=np.full_like(few.ids_E, PERMUTATION[0]))
    outside = dataclasses.replace(few, ids_E=np.full_like(few.ids_E, PERMUTATION[-1]))
    with pytest.raises(ValueError, match="record 1: an id's rank is outside the vocabulary of 1,023"):
        decode(encode(inside), encode(outside), encode(inside), id_of=ID_OF[:-1])


def test_a_missing_stream_and_rows_of_different_streams_are_errors() -> None:
    record, streams = streams_of(encode(truncated_row(0)))
    with pytest.raises(ValueError, match="record 0: it has no stream rest"):
        decode(packed_again(record, [stream for stream in streams if stream[0] != 4]))
    with pytest.raises(ValueError, match="record 1: its kind, its length or its streams"):
        decode(encode(truncated_row(0)), encode(truncated_row(1, extras=False)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logprob_E": np.array([-1, np.nan, -3], np.float32)}, "logprob_E holds a NaN"),
        ({"log_rest_N": np.array([np.nan], np.float32)}, "log_rest_N holds a NaN"),
        ({"entropy_N": np.array([np.nan], np.float32)}, "entropy_N holds a NaN"),
        ({"logprob_E": np.array([-2, -1, -3], np.float32)}, "not in descending probability"),
        ({"ids_E": np.array([5, 9, 5], np.int32)}, "a token id twice"),
        ({"ids_E": np.array([5, VOCABULARY, 2], np.int32)}, "outside the vocabulary"),
        ({"ids_E": np.array([5, -1, 2], np.int32)}, "outside the vocabulary"),
        ({"log_rest_N": None}, "need logprob_E and log_rest_N"),
        ({"count_E": np.array([3, 0, 1], np.int32)}, "a count is below 1"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        encode(one_position(**changes))


def test_a_row_without_any_target_is_stored_as_such() -> None:
    empty = one_position(
        length_N=np.zeros(1, np.int32),
        ids_E=np.zeros(0, np.int32),
        logprob_E=np.zeros(0, np.float32),
        log_rest_N=np.zeros(1, np.float32),
    )
    found = decode(encode(empty))
    assert found.length_N.tolist() == [0]
    assert found.ids_E.shape == (0,)
    assert found.log_rest_N[0] > -1e-12


def test_a_coarser_grid_of_the_manifest_is_the_one_used() -> None:
    coarse = GRIDS | {"logprob": Grid(origin=0.0, step=-1.0)}
    found = decode(encode(one_position(), coarse), grids=coarse)
    np.testing.assert_allclose(np.diff(found.logprob_E), [0.0, -1.0], atol=1e-6)  # -0.69, -1.20, -2.30 -> 1, 1, 2


def test_the_made_rows_are_distributions_to_learn_from() -> None:
    logprob = full_logprob(0, positions=32)
    np.testing.assert_allclose(np.exp(logprob).sum(axis=1), 1.0)
    assert 20 < truncated_row(0, positions=256).length_N.mean() < 60


def test_a_long_row_is_finished_in_blocks_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = [encode(truncated_row(row, positions=40, k=k)) for row, k in enumerate([3, VOCABULARY, 1, 100])]
    data += [encode(truncated_row(9, positions=40, p=0.3))]
    expected = decode(*data)
    for block in (1, 100, 1000):
        monkeypatch.setattr("predistill.store.decode.BLOCK", block)
        found = decode(*data)
        for field in dataclasses.fields(RowTargets):
            np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name), err_msg=field.name)


def test_unscaled_log_probabilities_are_the_grids_own_and_encode_to_the_same_integers() -> None:
    data = encode(truncated_row(5))
    found = decode(data, scaled=False)
    assert found.logprob_E is not None
    np.testing.assert_array_equal(found.logprob_E * 64, np.rint(found.logprob_E * 64))
    again, first = parse(encode(found)), parse(data)
    for a, b in zip(again.streams[:3], first.streams[:3], strict=True):  # lengths, ids, logprobs
        assert (a.id, a.bytes) == (b.id, b.bytes)
    np.testing.assert_array_equal(decode(encode(found)).logprob_E, decode(data).logprob_E)


def test_lengths_beyond_32_bits_of_sign_are_an_error() -> None:
    record, streams = streams_of(encode(truncated_row(0)))
    lengths = np.zeros(32, "<u4")
    lengths[:2] = 2**32 - 1, record.entries + 1  # as int32 they would sum to the entries
    with pytest.raises(ValueError, match="its lengths sum to"):
        decode(packed_again(record, [(1, 0, 3, 32, lengths.tobytes()), *streams[1:]]))


def test_gaps_that_lead_outside_the_vocabulary_are_an_error() -> None:
    record, streams = streams_of(encode(sampled_row(0)))
    gaps = np.full(record.entries, 2**31, "<u4")  # two of them are 0 in 32 bits
    with pytest.raises(ValueError, match="record 0: an id's rank is outside"):
        decode(packed_again(record, [streams[0], (2, 0, 3, record.entries, gaps.tobytes()), *streams[2:]]))
