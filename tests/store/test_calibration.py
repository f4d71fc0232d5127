from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from predistill.errors import StoreError
from predistill.store import RowTargets, SharedWriter
from predistill.store.calibration import CALIBRATION, Calibration
from predistill.store.place import LocalPlace
from tests.store.crowd import left_behind
from tests.store.made import TRUNCATED, VOCABULARY, sampled_row, token_hash, truncated_row


def sample() -> Sequence[RowTargets]:
    return [truncated_row(row) for row in (0, 3, 5)]


def never() -> Sequence[RowTargets]:
    raise AssertionError("it was measured already")


def sealed(path: Path, calibration: Calibration, *, rows: int) -> None:
    with SharedWriter(
        path,
        rows=rows,
        span_rows=2,
        self_test=calibration.self_test,
        manifest=TRUNCATED,
        permutation=calibration.permutation,
    ) as shared:
        for span in shared.spans():
            for row in span.tolist():
                shared.append(shared.writer.packed(row, token_hash(row), truncated_row(row)))


def test_the_permutation_is_by_frequency_and_the_means_are_the_samples(tmp_path: Path) -> None:
    found = Calibration.of(tmp_path, sample, vocabulary=VOCABULARY)
    counts = np.zeros(VOCABULARY)
    for targets in sample():
        np.add.at(counts, targets.ids_E, 1)
    assert sorted(found.permutation.tolist()) == list(range(VOCABULARY))
    assert (np.diff(counts[found.permutation]) <= 0).all()
    label = np.concatenate([targets.label_logprob_N for targets in sample()])  # type: ignore[arg-type]
    rest = np.concatenate([np.exp(targets.log_rest_N) for targets in sample()])  # type: ignore[arg-type]
    assert found.self_test["teacher_loss_nats"] == pytest.approx(-float(label.mean()))
    assert found.self_test["mean_kept_mass"] == pytest.approx(1 - float(rest.mean()))
    assert 0 < found.self_test["kl_online_to_stored_nats"] < 1e-4
    assert found.self_test["sample_rows"] == found.self_test["kl_rows"] == 3


def test_it_is_measured_once_and_read_by_all_others(tmp_path: Path) -> None:
    first = Calibration.of(tmp_path, sample, vocabulary=VOCABULARY)
    again = Calibration.of(tmp_path, never, vocabulary=VOCABULARY)
    np.testing.assert_array_equal(first.permutation, again.permutation)
    assert first.self_test == again.self_test


def test_of_many_who_measure_at_once_all_go_on_with_the_same(tmp_path: Path) -> None:
    begin, found = threading.Barrier(6), []

    def calibrate(number: int) -> None:
        def own() -> Sequence[RowTargets]:
            begin.wait()
            return [truncated_row(number)]  # another one than the others', as on another machine

        found.append(Calibration.of(tmp_path, own, vocabulary=VOCABULARY))

    threads = [threading.Thread(target=calibrate, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(one.permutation.tobytes(), str(one.self_test)) for one in found}) == 1


def test_of_a_sealed_store_it_is_the_manifests_and_nothing_is_written(tmp_path: Path) -> None:
    first = Calibration.of(tmp_path, sample, vocabulary=VOCABULARY)
    sealed(tmp_path, first, rows=4)
    assert left_behind(tmp_path) == []
    again = Calibration.of(tmp_path, never, vocabulary=VOCABULARY)
    np.testing.assert_array_equal(first.permutation, again.permutation)
    assert first.self_test == again.self_test
    assert left_behind(tmp_path) == []


def test_a_store_that_is_sealed_meanwhile_gets_no_new_one(tmp_path: Path) -> None:
    """Who comes late loads a teacher for minutes first."""

    def slow() -> Sequence[RowTargets]:
        sealed(tmp_path, Calibration.of(tmp_path, sample, vocabulary=VOCABULARY), rows=4)
        return sample()

    found = Calibration.of(tmp_path, slow, vocabulary=VOCABULARY)
    assert found.self_test["sample_rows"] == 3
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("name", [CALIBRATION, "id_permutation.npy"])
def test_a_damaged_one_is_an_error(tmp_path: Path, name: str) -> None:
    Calibration.of(tmp_path, sample, vocabulary=VOCABULARY)
    data = (tmp_path / name).read_bytes()
    for changed in (data[:-1], data[:50], b"", b"\x93NUMPY", data.replace(b"1", b"2", 1), b"\xff" * 200):
        LocalPlace(tmp_path).put(name, changed)
        with pytest.raises(StoreError, match=r"the calibration of the capture: .*Delete it to begin again"):
            Calibration.of(tmp_path, sample, vocabulary=VOCABULARY)


def test_a_place_that_cannot_be_reached_is_not_taken_for_damage() -> None:
    with pytest.raises(StoreError, match="run the same command again"):
        Calibration.of("http://127.0.0.1:9/store", sample, vocabulary=VOCABULARY)


def test_draws_have_no_kept_mass_and_are_stored_as_they_are(tmp_path: Path) -> None:
    found = Calibration.of(tmp_path, lambda: [with_label(sampled_row(0))], vocabulary=VOCABULARY)
    assert found.self_test["kl_online_to_stored_nats"] == 0.0
    assert "mean_kept_mass" not in found.self_test


def with_label(targets: RowTargets) -> RowTargets:
    from dataclasses import replace

    some = np.full(len(targets.length_N), -1.0, np.float32)
    return replace(targets, label_logprob_N=some, entropy_N=-some, logit_std_N=-some)
