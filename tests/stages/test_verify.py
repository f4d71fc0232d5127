"""Verify with the teacher: rows computed again are equal to the bit; what is not the manifest's is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from predistill.assets import teacher_path
from predistill.errors import RecipeError, StoreError
from predistill.objective import Sampled
from predistill.runs import Run
from predistill.stages.capture import capture
from predistill.stages.prepare import prepare
from predistill.stages.select import select
from predistill.stages.verify import verify_teacher
from predistill.store import Store, StoreWriter
from predistill.store.layout import facts_of


def test_rows_are_equal_to_the_bit_and_the_figures_are_the_capture_s(store: Path, corpus: Path) -> None:
    facts = verify_teacher(store, teacher=teacher_path(), corpus=corpus, rows=10**6)
    assert facts["rows"] == facts["rows_equal"] == len(Store(store))
    assert facts["kl_online_to_stored_nats"] < 2e-5
    assert facts["max_logprob_difference"] <= 1 / 64
    assert facts["positions_other_ids"] == 0
    stored = Store(store).rows(range(len(Store(store))))
    assert facts["stored_loss_nats"] == pytest.approx(-float(stored.label_logprob_N.mean(dtype=np.float64)), rel=1e-6)
    assert facts["teacher_loss_nats"] == pytest.approx(facts["stored_loss_nats"], abs=1e-4)
    kept = float(-np.expm1(stored.log_rest_N.astype(np.float64)).mean())
    assert facts["mean_kept_mass"] == pytest.approx(kept, abs=1e-4)


def test_a_sample_is_whole_groups_and_a_seed_chooses_others(store: Path, corpus: Path) -> None:
    heard: list[tuple[int, int]] = []
    facts = verify_teacher(
        store, teacher=teacher_path(), corpus=corpus, rows=70, seed=3, on_progress=lambda *at: heard.append(at)
    )
    assert facts["rows"] >= 70
    assert facts["rows_equal"] == facts["rows"]
    assert heard == [(1, 2), (2, 2)]


@pytest.mark.parametrize("tau", [1.0, 1.5])
def test_draws_are_drawn_again(corpus: Path, tmp_path: Path, tau: float) -> None:
    drawn = Sampled(draws=9, proposal_temperature=tau)
    capture(teacher_path(), corpus=corpus, out=tmp_path / "d", truncation=drawn, split="held_out")
    facts = verify_teacher(tmp_path / "d", teacher=teacher_path(), corpus=corpus)
    assert facts["rows_equal"] == facts["rows"]
    assert facts["positions_other_ids"] == 0


def test_a_selected_store_is_still_its_teacher_s(store: Path, corpus: Path, tmp_path: Path) -> None:
    select(store, out=tmp_path / "s", top_k=10, rows="100:164")
    facts = verify_teacher(tmp_path / "s", teacher=teacher_path(), corpus=corpus, rows=1000)
    assert facts["rows"] == 64
    assert facts["positions_other_ids"] == 0
    assert facts["kl_online_to_stored_nats"] < 2e-5


def altered(store: Path, out: Path, shift: float) -> Path:
    """A store that says it is the teacher's, with other distributions."""
    source = Store(store)
    with StoreWriter(out, manifest=facts_of(source.manifest), permutation=source.permutation) as writer:
        from dataclasses import replace

        from predistill.store.record import parse_head

        for row in range(64):
            targets = source.rows([row])
            rest = np.minimum(targets.log_rest_N + np.float32(shift), -1e-3)
            record = parse_head(source.records([row])[0])
            writer.write(row, record.token_hash, replace(targets, log_rest_N=rest))
        writer.seal({}, rows_expected=len(source), partial=True)
    return out


def test_a_store_that_is_not_what_the_teacher_says_is_an_error(store: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nats away from what is stored, and 0\.001 is the most that fp32 explains"):
        verify_teacher(altered(store, tmp_path / "a", 0.5), teacher=teacher_path(), corpus=corpus)


def test_what_is_not_the_manifest_s_is_refused_with_both_values(
    store: Path, corpus: Path, masked_corpus: Path, sample_text: Path, lm_run: Run, tmp_path: Path
) -> None:
    own = Store(store).manifest
    prepare(sample_text, out=tmp_path / "other", train_tokenizer=300, row_len=64, held_out=0.15, processes=1)
    prepare(sample_text, out=tmp_path / "shuffled", tokenizer=corpus, row_len=64, held_out=0.15, processes=1, seed=5)
    for flags, says in (
        ({"teacher": lm_run.path}, f"its teacher is {own['teacher']['sha256'][0]}, and here it is"),
        ({"corpus": masked_corpus}, "its document mask is False, and here it is True"),
        ({"corpus": tmp_path / "other"}, f"its tokenizer is {own['tokenizer']['sha256']}, and here it is"),
        ({"corpus": tmp_path / "shuffled"}, f"its corpus fingerprint is {own['corpus']['fingerprint']}, and here it"),
        ({"split": "held_out"}, "its split is train, and here it is held_out"),
        ({"dtype": "bf16"}, "its precision is fp32, and here it is bf16"),
    ):
        with pytest.raises(StoreError) as error:
            verify_teacher(store, **({"teacher": teacher_path(), "corpus": corpus} | flags))
        assert says in str(error.value)
    with pytest.raises(RecipeError, match="--rows 0"):
        verify_teacher(store, teacher=teacher_path(), corpus=corpus, rows=0)
    with pytest.raises(RecipeError, match='--dtype is "fp8"'):
        verify_teacher(store, teacher=teacher_path(), corpus=corpus, dtype="fp8")


def test_the_bound_is_far_above_the_grid(store: Path) -> None:
    assert Store(store).manifest["self_test"]["kl_online_to_stored_nats"] < 1e-3 / 20
