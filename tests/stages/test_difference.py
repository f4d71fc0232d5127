"""Selecting: the documents with the higher score stay, as they were, up to the asked share; and refusals in words."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predistill.corpus import Corpus
from predistill.corpus.chosen import document_hashes, document_stops
from predistill.errors import CorpusError, PredistillError, RecipeError, StoreError
from predistill.fingerprint import row_hash
from predistill.objective import TopK
from predistill.runs import Run
from predistill.stages.capture import capture
from predistill.stages.difference import difference_scores, select, top_documents
from predistill.stages.prepare import prepare
from predistill.store import RowTargets, Store, StoreWriter
from tests.made import ROW_LEN, files_below


def made_store(
    path: Path,
    corpus: Path,
    *,
    model: str,
    facts: dict[str, Any] | None = None,
    labels: bool = True,
    rows: int | None = None,
) -> Path:
    """A store over the train split whose label log-probabilities are drawn; one entry at each position."""
    source = Corpus(corpus)
    size = source.row_len
    draw = np.random.default_rng([ord(letter) for letter in model])
    manifest = {
        "teacher": {"name": model, "sha256": [model]},
        "corpus": {"fingerprint": source.fingerprint, "split": "train", **(facts or {})},
        "truncation": {"kind": "top_k", "k": 1},
    }
    with StoreWriter(path, manifest=manifest, permutation=np.arange(source.vocab_size)) as writer:
        for row, ids in enumerate(source.rows(range(len(source) if rows is None else rows))[0]):
            targets = RowTargets(
                row_ids=np.array([row]),
                positions=size,
                length_N=np.ones(size, np.int32),
                ids_E=np.zeros(size, np.int32),
                logprob_E=np.full(size, -1, np.float32),
                log_rest_N=np.full(size, -0.5, np.float32),
                label_logprob_N=-draw.exponential(5, size).astype(np.float32) if labels else None,
            )
            writer.write(row, row_hash(ids), targets)
        writer.seal({}, rows_expected=len(source), **({} if rows is None else {"partial": True}))
    return path


@pytest.fixture(scope="module")
def stores(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What `select` takes: a teacher's store and a reference's."""
    folder = tmp_path_factory.mktemp("stores")
    return {
        "by": made_store(folder / "teacher", corpus, model="teacher"),
        "reference": made_store(folder / "reference", corpus, model="reference"),
    }


def scores_of(corpus: Path, by: Path, reference: Path) -> list[float]:
    """The definition, label by label."""
    source, teacher, small = Corpus(corpus), Store(by), Store(reference)
    differences: list[list[float]] = [[]]
    for row, ids in enumerate(source.rows(range(len(source)))[0]):
        ours, theirs = (store.rows([row]).label_logprob_N for store in (teacher, small))
        assert ours is not None
        assert theirs is not None
        for token, high, low in zip(ids[1:].tolist(), ours.tolist(), theirs.tolist(), strict=True):
            differences[-1].append(high - low)
            if token == source.end_id:
                differences.append([])
    return [sum(found) / len(found) for found in differences if found]


def documents_of(corpus: Path) -> list[list[int]]:
    source = Corpus(corpus)
    stream = source.stream(1, len(source) * source.row_len + 1)
    return [part.tolist() for part in np.split(stream, document_stops(source)) if len(part)]


@pytest.mark.parametrize("block_tokens", [1, 200, 1000, 1 << 30])
def test_a_score_is_the_mean_difference_whatever_the_block(
    corpus: Path, stores: dict[str, Path], block_tokens: int
) -> None:
    source = Corpus(corpus)
    pair = Store(stores["by"]), Store(stores["reference"])
    heard: list[int] = []
    found = difference_scores(source, document_stops(source), *pair, block_tokens=block_tokens, on_tokens=heard.append)
    assert found.tolist() == scores_of(corpus, **stores)  # sums of grid steps: exact
    assert sum(heard) == len(source) * ROW_LEN
    assert max(heard) <= max(block_tokens, ROW_LEN)


def test_the_higher_half_is_kept_as_it_was(corpus: Path, stores: dict[str, Path], tmp_path: Path) -> None:
    result = select(corpus, out=tmp_path / "new", frac=0.5, **stores)
    scores, documents = np.array(scores_of(corpus, **stores)), documents_of(corpus)
    (selected,) = Corpus(tmp_path / "new").manifest["selected"]
    kept = scores >= selected["threshold"]
    assert scores[kept].mean() > scores[~kept].mean()
    assert scores[kept].min() > scores[~kept].max()
    assert selected["kept"] == {
        "documents": kept.sum(),
        "tokens": sum(len(documents[i]) for i in np.flatnonzero(kept)),
        "mean_score": scores[kept].mean(),
    }
    assert selected["dropped"]["mean_score"] == scores[~kept].mean()
    assert selected["kept"]["tokens"] + selected["dropped"]["tokens"] == len(Corpus(corpus)) * ROW_LEN
    new = Corpus(tmp_path / "new")
    expected = [token for document, chosen in zip(documents, kept, strict=True) if chosen for token in document]
    assert new.rows(range(len(new)))[0][:, 1:].ravel().tolist() == expected[: len(new) * ROW_LEN]
    assert (selected["corpus"], selected["frac"], selected["score"]) == (Corpus(corpus).fingerprint, 0.5, "difference")
    assert selected["teacher"] == {
        "store_id": Store(stores["by"]).manifest["store_id"],
        "name": "teacher",
        "sha256": ["teacher"],
    }
    assert selected["reference"]["name"] == "reference"
    assert result["fingerprint"] == new.fingerprint
    assert result["notes"][0].startswith(f"Kept {kept.sum():,} of {len(kept):,} documents")


@pytest.mark.parametrize("frac", [0.01, 0.3, 0.5, 0.9])
def test_the_share_is_right_to_within_one_document(frac: float) -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(1, 500, 300)
    score = draw.normal(size=300)
    chosen = top_documents(score, np.cumsum(labels), frac=frac)
    last = labels[score == score[chosen].min()].item()
    assert 0 <= labels[chosen].sum() - frac * labels.sum() < last
    assert score[chosen].min() > score[~chosen].max()


def test_equal_scores_go_in_the_documents_order() -> None:
    assert top_documents(np.zeros(4), np.arange(1, 5), frac=0.5).tolist() == [True, True, False, False]


def test_all_is_the_corpus_again(corpus: Path, stores: dict[str, Path], tmp_path: Path) -> None:
    select(corpus, out=tmp_path / "best", frac=1.0, **stores)
    select(corpus, out=tmp_path / "random", frac=1.0, seed=3)
    assert {Corpus(tmp_path / name).fingerprint for name in ("best", "random")} == {Corpus(corpus).fingerprint}
    (selected,) = Corpus(tmp_path / "best").manifest["selected"]
    assert selected["dropped"] == {"documents": 0, "tokens": 0, "mean_score": None}


def test_a_random_half_is_the_seed_s_alone(corpus: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("again", 0), ("other", 1)):
        select(corpus, out=tmp_path / name, frac=0.5, seed=seed)
    assert files_below(tmp_path / "a") == files_below(tmp_path / "again")
    assert Corpus(tmp_path / "a").fingerprint != Corpus(tmp_path / "other").fingerprint
    (selected,) = Corpus(tmp_path / "a").manifest["selected"]
    assert (selected["score"], selected["seed"]) == ("hash", 0)
    assert "teacher" not in selected


def test_a_random_half_has_no_higher_score_than_the_other(corpus: Path, stores: dict[str, Path]) -> None:
    source, scores = Corpus(corpus), np.array(scores_of(corpus, **stores))
    stop_D = document_stops(source)
    halves = [top_documents(document_hashes(source, stop_D, seed=s) / 2.0**64, stop_D, frac=0.5) for s in range(400)]
    means = [scores[half].mean() for half in halves]
    error = np.std(means) / np.sqrt(len(means))
    assert abs(np.mean(means) - scores.mean()) < 4 * error
    assert np.mean(halves, axis=0).min() > 0.3  # every document is often in it


def test_selecting_twice_keeps_both_in_the_manifest(corpus: Path, stores: dict[str, Path], tmp_path: Path) -> None:
    select(corpus, out=tmp_path / "one", frac=0.6, **stores)
    select(tmp_path / "one", out=tmp_path / "two", frac=0.5, seed=1)
    first, second = Corpus(tmp_path / "two").manifest["selected"]
    assert [first["score"], second["score"]] == ["difference", "hash"]
    assert second["corpus"] == Corpus(tmp_path / "one").fingerprint
    with pytest.raises(StoreError, match="was captured over something else"):
        select(tmp_path / "one", out=tmp_path / "three", frac=0.5, **stores)


def test_documents_behind_the_last_row_are_not_kept_and_named(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(f'{{"text": "a text with number {i}"}}\n' for i in range(90)))
    prepare(tmp_path / "t.jsonl", out=tmp_path / "c", train_tokenizer=260, row_len=900, held_out=0, processes=1)
    there = len(document_stops(Corpus(tmp_path / "c")))
    assert there < 90
    result = select(tmp_path / "c", out=tmp_path / "new", frac=1.0)
    assert result["splits"]["train"]["documents"] == there
    assert result["selected"][0]["without_score"] == 90 - there
    assert result["notes"][-1] == (
        f"Not kept: {90 - there:,} documents behind the last whole row, which have no label in it."
    )


def test_a_real_teacher_is_ahead_where_it_says_so(corpus: Path, store: Path, lm_run: Run, tmp_path: Path) -> None:
    capture(lm_run.path, corpus=corpus, out=tmp_path / "reference", truncation=TopK(k=1))
    result = select(corpus, out=tmp_path / "new", frac=0.5, by=store, reference=tmp_path / "reference")
    (selected,) = result["selected"]
    assert selected["kept"]["mean_score"] > selected["dropped"]["mean_score"]
    assert selected["teacher"]["name"] == "teacher"
    again = capture(lm_run.path, corpus=tmp_path / "new", out=tmp_path / "s", truncation=TopK(k=1))
    assert len(again) == len(Corpus(tmp_path / "new"))


def test_progress_goes_up_to_the_total(corpus: Path, stores: dict[str, Path], tmp_path: Path) -> None:
    heard: dict[str, list[tuple[int, int]]] = {}
    select(
        corpus,
        out=tmp_path / "new",
        frac=0.5,
        on_progress=lambda done, total, phase: heard.setdefault(phase, []).append((done, total)),
        **stores,
    )
    assert list(heard) == ["score", "copy"]
    for calls in heard.values():
        assert calls == sorted(calls)
    assert heard["score"][-1] == (len(Corpus(corpus)) * ROW_LEN * 2,) * 2


def refusal(error: type[PredistillError], says: str, corpus: Path, out: Path, **settings: Any) -> None:
    before = files_below(out.parent)
    with pytest.raises(error, match=says) as raised:
        select(corpus, out=out, **{"frac": 0.5, **settings})
    assert "\n" not in str(raised.value)
    assert files_below(out.parent) == before


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"frac": 0.0}, r"--select 0: give a fraction above 0, at most 1\."),
        ({"frac": 1.5}, r"--select 1\.5: "),
        ({"by": "s"}, "--by without --reference: a score is the difference of two stores"),
        ({"reference": "s"}, "--reference without --by: "),
        ({"seed": -1}, "--seed -1: "),
    ],
)
def test_unusable_settings_are_refused(corpus: Path, tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    refusal(RecipeError, says, corpus, tmp_path / "new", **settings)


def test_stores_of_anything_else_are_refused(corpus: Path, stores: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out" / "new"
    for facts, says in (
        ({"fingerprint": "f00d"}, r"\(fingerprint f00d, expected "),
        ({"split": "held_out"}, r"the train split of .*plain \(split held_out, expected train\)"),
    ):
        other = made_store(tmp_path / says[-8:-1].strip(), corpus, model="other", facts=facts)
        refusal(StoreError, says, corpus, out, **{**stores, "reference": other})
    refusal(StoreError, "are one store, so that every score is 0", corpus, out, by=stores["by"], reference=stores["by"])
    dumb = made_store(tmp_path / "dumb", corpus, model="dumb", labels=False)
    refusal(StoreError, "dumb: holds no log-probability of the labels", corpus, out, **{**stores, "by": dumb})
    refusal(StoreError, "no teacher store is here", corpus, out, **{**stores, "by": tmp_path / "none"})


def test_a_store_of_some_rows_is_refused(corpus: Path, stores: dict[str, Path], tmp_path: Path) -> None:
    part = made_store(tmp_path / "part", corpus, model="part", rows=100)
    says = r"part: holds 100 of the corpus's \d+ rows"
    refusal(StoreError, says, corpus, tmp_path / "out" / "new", **{**stores, "by": part})


def test_corpora_that_are_none_damaged_or_in_the_way_are_refused(
    corpus: Path, sample_text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "new"
    refusal(CorpusError, "no prepared corpus here", sample_text, out)
    shutil.copytree(corpus, tmp_path / "c")
    refusal(CorpusError, "a corpus is there already", corpus, tmp_path / "c")
    refusal(CorpusError, "is the corpus that is selected from", tmp_path / "c", tmp_path / "c", overwrite=True)
    held_out = bytearray((tmp_path / "c" / "held_out.bin").read_bytes())
    held_out[10] ^= 1
    (tmp_path / "c" / "held_out.bin").write_bytes(held_out)
    refusal(CorpusError, "its bytes are not those that were written", tmp_path / "c", out)


def test_an_older_corpus_goes_only_when_asked(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "new")
    select(corpus, out=tmp_path / "new", frac=0.5, overwrite=True)
    assert Corpus(tmp_path / "new").fingerprint != Corpus(corpus).fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
