"""Capture: what is read back is what the teacher says, up to the grid; a stop, a death or an order changes no byte."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from predistill.assets import teacher_path
from predistill.corpus import Corpus
from predistill.errors import RecipeError, StoreError, TeacherError
from predistill.fingerprint import row_hash
from predistill.objective import Sampled, SparseTargets, TopK, TopP, TopPK
from predistill.runs import Run
from predistill.stages.capture import capture, group_rows, truncation_from_flags
from predistill.store import Store
from predistill.store.grids import GRIDS
from predistill.students.forward import head_of, hidden_states
from predistill.teachers.load import load_teacher
from predistill.teachers.stored import StoredTeacher
from tests.made import ROW_LEN, files_below
from tests.processes import Forks, bytes_below, kill_then_finish

CPU = torch.device("cpu")
KEPT = TopPK(p=0.95, k=100)
TIMED = ("costs/00000.json",)  # what the capture cost: all else is a function of teacher, corpus and truncation


def store_files(path: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_below(path).items() if name not in TIMED}


@pytest.fixture(scope="module")
def small_store(corpus: Path, lm_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny student as a teacher: its capture takes a second."""
    out = tmp_path_factory.mktemp("store") / "small"
    capture(lm_run.path, corpus=corpus, out=out, truncation=KEPT)
    return out


@pytest.fixture(scope="module")
def live(corpus: Path) -> tuple[np.ndarray, np.ndarray, SparseTargets]:
    """Some rows, their ids, and the truncation of the embedded teacher's fresh logits there."""
    source = Corpus(corpus)
    rows = np.array([0, 1, 63, 64, 70, len(source) - 1])  # of the first groups and of the last, shorter one
    ids, _ = source.rows(rows)
    teacher = load_teacher(teacher_path(), vocab_size=source.vocab_size, device=CPU, dtype=torch.float32)
    with torch.inference_mode():
        hidden_ND = hidden_states(teacher, torch.from_numpy(ids[:, :-1]), end_id=None).flatten(0, 1)
        logit_NV = head_of(teacher).logits(hidden_ND)
    return rows, ids, KEPT(logit_NV, torch.from_numpy(ids[:, 1:]).flatten())


def test_stored_targets_are_the_live_ones_up_to_the_grid(
    store: Path, live: tuple[np.ndarray, np.ndarray, SparseTargets]
) -> None:
    rows, ids, fresh = live
    read = StoredTeacher(Store(store), truncation=KEPT, device=CPU).targets(rows, ids)
    assert read.ids_NK.shape == fresh.ids_NK.shape
    assert int((fresh.ids_NK >= 0).sum()) > 5 * len(rows) * ROW_LEN
    # The batch's shape decides a teacher's last bits, so that near a tie or at the edge of p a word may differ.
    same_N = (read.ids_NK == fresh.ids_NK).all(dim=1)
    assert float(same_N.float().mean()) > 0.995
    kept_NK = (fresh.ids_NK >= 0) & same_N[:, None]
    assert read.logprob_NK is not None
    assert fresh.logprob_NK is not None
    # Half a step of rounding, and the shift that makes the kept mass 1 - rest, itself a mean of such roundings.
    error_NK = (read.logprob_NK - fresh.logprob_NK).abs()[kept_NK]
    assert float(error_NK.max()) <= abs(GRIDS["logprob"].step)
    assert float(error_NK.max()) > 0  # a grid there is


def test_the_kl_from_live_to_stored_is_tiny(store: Path, live: tuple[np.ndarray, np.ndarray, SparseTargets]) -> None:
    rows, ids, fresh = live
    read = StoredTeacher(Store(store), truncation=KEPT, device=CPU).targets(rows, ids)
    same_N = (read.ids_NK == fresh.ids_NK).all(dim=1)

    def whole(targets: SparseTargets) -> torch.Tensor:
        """The kept entries and the rest, as one distribution."""
        assert targets.logprob_NK is not None
        assert targets.log_rest_N is not None
        kept_NK = targets.logprob_NK.masked_fill(targets.ids_NK < 0, -torch.inf)
        return torch.cat([kept_NK, targets.log_rest_N[:, None]], dim=1).double()

    live_NK, stored_NK = whole(fresh)[same_N], whole(read)[same_N]
    assert torch.allclose(stored_NK.exp().sum(dim=1), torch.ones(len(stored_NK), dtype=torch.float64), atol=1e-5)
    terms_NK = live_NK.exp() * (live_NK - stored_NK)
    kl_N = torch.where(live_NK.exp() > 0, terms_NK, 0.0).sum(dim=1)
    assert 0 < float(kl_N.mean()) < 2e-5
    assert float(kl_N.max()) < 2e-4


def test_what_is_stored_of_a_position_is_the_live_one_up_to_its_grid(
    store: Path, live: tuple[np.ndarray, np.ndarray, SparseTargets]
) -> None:
    rows, _, fresh = live
    read = Store(store).rows(rows)
    for name, grid in (("entropy_N", "entropy"), ("logit_std_N", "logit_std"), ("label_logprob_N", "label_logprob")):
        live_N = getattr(fresh, name).numpy()
        error_N = np.abs(getattr(read, name) - live_N)
        assert error_N.max() <= abs(GRIDS[grid].step) * 0.51 + 1e-4, name
        assert live_N.std() > 0.1, name
    assert read.log_rest_N is not None
    assert fresh.log_rest_N is not None
    assert np.allclose(np.exp(read.log_rest_N), fresh.log_rest_N.exp().numpy(), rtol=4e-3, atol=1e-6)


def test_stored_draws_are_the_draws_of_the_live_teacher(corpus: Path, tmp_path: Path, lm_run: Run) -> None:
    store = capture(lm_run.path, corpus=corpus, out=tmp_path / "store", truncation=Sampled(draws=500))
    source = Corpus(corpus)
    rows = np.array([5, 64])
    ids, _ = source.rows(rows)
    read = StoredTeacher(store, truncation=Sampled(draws=500), device=CPU).targets(rows, ids)
    assert read.weight_NK is not None
    assert torch.allclose(read.weight_NK.sum(dim=1), torch.ones(len(rows) * ROW_LEN))
    teacher = load_teacher(lm_run.path, vocab_size=source.vocab_size, device=CPU, dtype=torch.float32)
    with torch.inference_mode():
        prob_NV = teacher(torch.from_numpy(ids[:, :-1])).logits.flatten(0, 1).double().softmax(dim=-1)
    drawn_NV = torch.zeros_like(prob_NV)
    drawn_NV.scatter_add_(1, read.ids_NK.clamp(min=0), read.weight_NK.double().masked_fill(read.ids_NK < 0, 0.0))
    # Mean over positions of the sum of squared errors: (1 - sum p^2) / draws is its expectation.
    expected = float((1 - prob_NV.square().sum(dim=1)).mean()) / 500
    assert float((drawn_NV - prob_NV).square().sum(dim=1).mean()) == pytest.approx(expected, rel=0.15)


def test_the_manifest_names_the_corpus_the_teacher_and_what_was_measured(store: Path, corpus: Path) -> None:
    manifest, source = Store(store).manifest, Corpus(corpus)
    assert manifest["corpus"]["fingerprint"] == source.fingerprint
    assert manifest["corpus"]["document_mask"] is False
    assert manifest["truncation"] == {"kind": "top_p_k", "p": 0.95, "k": 100}
    assert len(manifest["teacher"]["sha256"]) == 1
    test = manifest["self_test"]
    whole = Store(store).rows(np.arange(len(source)))
    assert whole.label_logprob_N is not None
    assert whole.log_rest_N is not None
    assert test["teacher_loss_nats"] == pytest.approx(-float(whole.label_logprob_N.mean()), rel=0.1)
    assert test["mean_kept_mass"] == pytest.approx(1 - float(np.exp(whole.log_rest_N).mean()), rel=0.02)
    assert str(store.parent) not in json.dumps(manifest)


def test_every_row_is_keyed_by_its_number_and_its_tokens(store: Path, corpus: Path) -> None:
    source, rows = Corpus(corpus), np.array([7, 3])
    hashes = [row_hash(ids) for ids in source.rows(rows)[0]]
    opened = Store(store)
    assert len(opened) == len(source)
    assert opened.rows(rows, token_hashes=np.array(hashes, dtype=np.uint64)).row_ids.tolist() == [7, 3]
    with pytest.raises(StoreError, match="made from other tokens"):
        opened.rows(rows, token_hashes=np.array(hashes[::-1], dtype=np.uint64))


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_interrupted_after_any_group_and_resumed_it_has_the_bytes_of_an_uninterrupted_one(
    small_store: Path, corpus: Path, lm_run: Run, tmp_path: Path, stop_after: int
) -> None:
    seen: list[int] = []

    def interrupt(done: int, total: int) -> None:
        seen.append(done)
        assert done < total
        if len(seen) == stop_after:
            raise KeyboardInterrupt

    out = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        capture(lm_run.path, corpus=corpus, out=out, truncation=KEPT, on_progress=interrupt)
    with pytest.raises(StoreError, match="not complete; run its capture again"):
        Store(out)
    capture(lm_run.path, corpus=corpus, out=out, truncation=KEPT)
    assert store_files(out) == store_files(small_store)


def test_a_torn_last_record_is_written_again(small_store: Path, corpus: Path, lm_run: Run, tmp_path: Path) -> None:
    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        capture(lm_run.path, corpus=corpus, out=out, truncation=KEPT, on_progress=interrupt)
    (shard,) = (out / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:-7])
    capture(lm_run.path, corpus=corpus, out=out, truncation=KEPT)
    assert store_files(out) == store_files(small_store)


def test_killed_twice_at_random_moments_the_store_has_the_bytes_of_one_never_killed(
    small_store: Path, corpus: Path, lm_run: Run, forks: Forks, tmp_path: Path
) -> None:
    moments, total = random.Random(), bytes_below(small_store / "shards")
    for attempt in range(5):
        out = tmp_path / f"store{attempt}"
        kills = kill_then_finish(
            forks,
            ("capture", "--teacher", lm_run.path, "--corpus", corpus, "--out", out),
            log=tmp_path / "log",
            progress=lambda out=out: bytes_below(out / "shards"),  # type: ignore[misc]
            total=total,
            times=2,
            moments=moments,
        )
        assert store_files(out) == store_files(small_store), kills
        Store(out).verify()
        if len(kills) == 2:
            return
    pytest.fail("no attempt was killed twice before it ended")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_on_request_it_exits_3_and_going_on_gives_the_same_bytes(
    small_store: Path, corpus: Path, lm_run: Run, forks: Forks, tmp_path: Path, number: signal.Signals
) -> None:
    out, log = tmp_path / "store", tmp_path / "log"
    command = ("capture", "--teacher", lm_run.path, "--corpus", corpus, "--out", out)
    process = forks.start(*command, log=log)
    while not bytes_below(out / "shards") and not process.ended():
        time.sleep(0.001)
    process.kill(number)
    assert process.wait() == 3, log.read_text()
    assert "run the same command again" in log.read_text()
    assert not (out / "manifest.json").exists()
    assert forks.run(*command, log=log) == 0
    assert store_files(out) == store_files(small_store)


def test_a_complete_store_is_left_alone(small_store: Path, corpus: Path, lm_run: Run) -> None:
    before = files_below(small_store)
    seen: list[Any] = []
    capture(lm_run.path, corpus=corpus, out=small_store, truncation=KEPT, on_progress=lambda *done: seen.append(done))
    assert files_below(small_store) == before
    assert not seen


def test_other_settings_do_not_go_into_a_store_half_made_or_complete(
    small_store: Path, corpus: Path, masked_corpus: Path, lm_run: Run, tmp_path: Path
) -> None:
    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    half = tmp_path / "half"
    with pytest.raises(KeyboardInterrupt):
        capture(lm_run.path, corpus=corpus, out=half, truncation=KEPT, on_progress=interrupt)
    other_teacher = tmp_path / "model"
    shutil.copytree(teacher_path(), other_teacher)
    for out in (half, small_store):
        before = files_below(out)
        for changed in (
            {"teacher": lm_run.path, "corpus": corpus, "truncation": TopK(k=5)},
            {"teacher": lm_run.path, "corpus": masked_corpus, "truncation": KEPT},
            {"teacher": other_teacher, "corpus": corpus, "truncation": KEPT},
        ):
            with pytest.raises(StoreError) as caught:
                capture(changed["teacher"], corpus=changed["corpus"], out=out, truncation=changed["truncation"])  # type: ignore[arg-type]
            assert str(caught.value).startswith(str(out))
            assert files_below(out) == before


def test_document_masking_changes_what_the_teacher_says(
    small_store: Path, masked_corpus: Path, lm_run: Run, tmp_path: Path
) -> None:
    masked = capture(lm_run.path, corpus=masked_corpus, out=tmp_path / "store", truncation=KEPT)
    source = Corpus(masked_corpus)
    rows = np.arange(len(source))
    inside = (source.rows(rows)[0][:, 1:-1] == source.end_id).any(axis=1)  # a document begins within the row
    assert 5 < inside.sum() < len(rows) - 5
    mask_stored, plain_stored = masked.rows(rows), Store(small_store).rows(rows)
    assert mask_stored.label_logprob_N is not None
    assert plain_stored.label_logprob_N is not None
    differs = (mask_stored.label_logprob_N != plain_stored.label_logprob_N).reshape(len(rows), -1).any(axis=1)
    assert differs[inside].mean() > 0.9
    # Elsewhere the two masks are one; the kernels' last bits may round to the next step of the grid.
    step = abs(GRIDS["label_logprob"].step)
    gap = np.abs(mask_stored.label_logprob_N - plain_stored.label_logprob_N).reshape(len(rows), -1).max(axis=1)
    assert gap[~inside].max() <= 1.01 * step


def test_the_held_out_split_is_captured_when_asked(corpus: Path, lm_run: Run, tmp_path: Path) -> None:
    store = capture(lm_run.path, corpus=corpus, out=tmp_path / "store", truncation=TopK(k=3), split="held_out")
    assert len(store) == len(Corpus(corpus, split="held_out"))
    assert store.manifest["corpus"]["split"] == "held_out"


def test_the_cost_is_kept_beside_the_store(store: Path, corpus: Path) -> None:
    cost = json.loads((store / "costs" / "00000.json").read_text())
    assert cost["tokens"] == len(Corpus(corpus)) * ROW_LEN
    assert cost["seconds"] > 0
    assert cost["cpu_seconds"] > 0


def test_a_group_is_4096_tokens_at_least_one_row() -> None:
    assert [group_rows(row_len) for row_len in (64, 256, 4096, 8192)] == [64, 16, 1, 1]


def test_a_precision_that_is_none_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r'--dtype is "fp8"\. One of fp32, bf16, fp16\.'):
        capture(teacher_path(), corpus=corpus, out=tmp_path / "store", truncation=KEPT, dtype="fp8")
    assert not (tmp_path / "store").exists()


def test_a_teacher_of_fewer_words_is_refused_and_nothing_is_written(sample_text: Path, tmp_path: Path) -> None:
    from predistill.stages.prepare import prepare

    prepare(sample_text, out=tmp_path / "corpus", train_tokenizer=2100, row_len=ROW_LEN, processes=1)
    with pytest.raises(TeacherError, match=r"has 2,048 words and the corpus was prepared with 2,100.*--tokenizer"):
        capture(teacher_path(), corpus=tmp_path / "corpus", out=tmp_path / "store", truncation=KEPT)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("flags", "truncation"),
    [
        ({}, TopPK(p=0.95, k=100)),
        ({"top_p": 0.8}, TopP(p=0.8)),
        ({"top_k": 7}, TopK(k=7)),
        ({"top_p": 0.8, "top_k": 7}, TopPK(p=0.8, k=7)),
        ({"draws": 9}, Sampled(draws=9)),
    ],
)
def test_flags_name_a_truncation(flags: dict[str, Any], truncation: Any) -> None:
    assert truncation_from_flags(**({"top_p": None, "top_k": None, "draws": None} | flags)) == truncation


def test_draws_stand_alone() -> None:
    with pytest.raises(RecipeError, match="--draws stands alone"):
        truncation_from_flags(top_p=0.9, top_k=None, draws=5)
