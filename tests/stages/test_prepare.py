"""Preparing: every document once, the same bytes from any number of processes, and nothing half-made after a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zstandard
from tokenizers import Tokenizer

from predistill.corpus import Corpus, workers
from predistill.corpus.split import is_held_out, split_hash
from predistill.errors import CorpusError
from predistill.stages.prepare import prepare

WORDS = ["the", "cat", "sat", "on", "mat", "then", "another", "looked", "garden", "春眠不觉晓", "处处闻啼鸟", "，"]
DATA = Path(os.environ.get("PREDISTILL_DATA", Path(__file__).parents[3] / "shared" / "data"))


def made_texts(count: int) -> list[str]:
    draw = random.Random(0)
    return [f"{number}: " + " ".join(draw.choices(WORDS, k=draw.randrange(3, 60))) for number in range(count)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in made_texts(400)))
    return path


def prepared(source: Path, out: Path, **settings: object) -> Corpus:
    prepare(source, out=out, **{"train_tokenizer": 300, "row_len": 16, "held_out": 0.1, **settings})  # type: ignore[arg-type]
    return Corpus(out)


def documents_of(corpus: Corpus) -> list[str]:
    """The documents in the rows, the last and possibly cut one left out."""
    ids, _ = corpus.rows(range(len(corpus)))
    stream = [*ids[:, :-1].ravel().tolist(), int(ids[-1, -1])]
    assert stream[0] == corpus.end_id
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_path))
    ends = np.flatnonzero(np.array(stream) == corpus.end_id)
    return [tokenizer.decode(stream[start + 1 : end]) for start, end in pairwise(ends)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_document_is_in_one_split_once(source: Path, tmp_path: Path) -> None:
    prepared(source, tmp_path / "c")
    texts = made_texts(400)
    for split in "train", "held_out":
        corpus = Corpus(tmp_path / "c", split)
        expected = [text for text in texts if is_held_out(split_hash(text.encode()), 0.1) == (split == "held_out")]
        found, stats = documents_of(corpus), corpus.split_stats
        assert not Counter(found) - Counter(expected)
        assert len(expected) - len(found) <= 1 + stats["dropped_tokens"]
        assert stats["documents"] == len(expected) > 20
        assert stats["bytes"] + stats["dropped_bytes"] == sum(len(text.encode()) for text in expected)
        assert stats["tokens"] == len(corpus) * 16 + 1
        assert found != expected[: len(found)], "the documents are shuffled"
        corpus.verify()


def test_any_number_of_processes_writes_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "BATCH_BYTES", 1000)
    for processes in 1, 2, 3:
        prepared(source, tmp_path / str(processes), processes=processes)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2") == files_of(tmp_path / "3")
    assert sorted(files_of(tmp_path / "1")) == [
        "held_out.bin",
        "manifest.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "train.bin",
    ]


def test_the_seed_orders_the_documents_and_never_moves_one_to_another_split(source: Path, tmp_path: Path) -> None:
    one, two = (prepared(source, tmp_path / str(seed), seed=seed) for seed in (1, 2))
    assert documents_of(one) != documents_of(two)
    assert one.split_stats["documents"] == two.split_stats["documents"]
    wider = prepared(source, tmp_path / "wider", held_out=0.2)
    held_out = set(documents_of(Corpus(tmp_path / "1", "held_out")))
    assert held_out & set(documents_of(wider)) == set()
    assert one.fingerprint != two.fingerprint


def test_a_corpus_gives_its_tokenizer_to_another(source: Path, tmp_path: Path) -> None:
    first = prepared(source, tmp_path / "a")
    again = prepared(source, tmp_path / "b", train_tokenizer=None, tokenizer=tmp_path / "a")
    assert again.fingerprint == first.fingerprint
    assert (first.manifest["tokenizer"]["trained_here"], again.manifest["tokenizer"]["trained_here"]) == (True, False)


def test_bad_documents_stop_it_or_are_counted(source: Path, tmp_path: Path) -> None:
    with source.open("ab") as file:
        file.write(b'{"text": ""}\n{"body": "a"}\nnot JSON\n{"text": ""}\n')
    with pytest.raises(CorpusError, match=r"texts\.jsonl line 401: the document is empty"):
        prepared(source, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    summary = prepare(source, out=tmp_path / "c", train_tokenizer=300, row_len=16, held_out=0.1, skip_bad=True)
    assert summary["skipped"] == {"empty document": 2, "missing field": 1, "not JSON": 1}
    assert summary["notes"] == ["Left out 4 bad documents: 2 empty document, 1 missing field, 1 not JSON."]
    assert Corpus(tmp_path / "c").manifest["skipped"] == summary["skipped"]


def test_an_existing_corpus_is_kept_unless_asked_and_until_the_new_one_is_whole(source: Path, tmp_path: Path) -> None:
    before = prepared(source, tmp_path / "c").fingerprint
    with pytest.raises(CorpusError, match=r"a corpus is there already\. Pass --overwrite"):
        prepared(source, tmp_path / "c", row_len=8)
    with pytest.raises(CorpusError, match="fill no row"):
        prepared(source, tmp_path / "c", row_len=10**6, overwrite=True)
    assert Corpus(tmp_path / "c").fingerprint == before
    assert prepared(source, tmp_path / "c", row_len=8, overwrite=True).row_len == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "texts.jsonl"]


def test_what_is_not_a_corpus_is_never_overwritten(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"is not a corpus\. Choose another --out\."):
        prepared(source, tmp_path, overwrite=True)
    assert source.exists()


KILLED = """
import os, signal, sys
from predistill.corpus import workers
from predistill.stages.prepare import prepare

workers.BATCH_BYTES = 1000

def kill(done_bytes, total_bytes, phase):
    if phase == sys.argv[3] and done_bytes * 2 >= total_bytes:
        os.kill(os.getpid(), signal.SIGKILL)

prepare(sys.argv[1], out=sys.argv[2], train_tokenizer=300, row_len=16, held_out=0.1, on_progress=kill)
"""


@pytest.mark.parametrize("phase", ["sample", "tokenise", "write"])
def test_a_kill_leaves_no_corpus_and_running_again_makes_it(source: Path, tmp_path: Path, phase: str) -> None:
    out = tmp_path / "c"
    killed = subprocess.run([sys.executable, "-c", KILLED, source, out, phase], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    prepared(source, out)
    prepared(source, tmp_path / "uninterrupted")
    assert files_of(out) == files_of(tmp_path / "uninterrupted")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "texts.jsonl", "uninterrupted"]


def test_a_plain_script_needs_no_main_guard(source: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    call = f"prepare({str(source)!r}, out={str(tmp_path / 'c')!r}, train_tokenizer=300, row_len=16, processes=2)"
    script.write_text(f"from predistill.stages.prepare import prepare\n{call}\n")
    subprocess.run([sys.executable, script], check=True, timeout=60)
    assert len(Corpus(tmp_path / "c")) > 0


def test_progress_goes_up_to_the_total_in_every_phase(source: Path, tmp_path: Path) -> None:
    heard: dict[str, list[tuple[int, int]]] = {}
    prepared(
        source, tmp_path / "c", on_progress=lambda done, total, phase: heard.setdefault(phase, []).append((done, total))
    )
    assert list(heard) == ["sample", "tokenise", "write"]
    for calls in heard.values():
        assert calls == sorted(calls)
        assert calls[-1][1] > 0
    assert heard["sample"][-1][0] == heard["tokenise"][-1][0] == source.stat().st_size


def test_an_empty_held_out_split_is_said(source: Path, tmp_path: Path) -> None:
    (said,) = prepare(source, out=tmp_path / "a", train_tokenizer=300, row_len=16, held_out=1e-9)["notes"]
    assert said.startswith("Nothing can be evaluated on this corpus: its 0 held-out documents fill no row.")
    assert len(Corpus(tmp_path / "a", "held_out")) == 0
    assert prepare(source, out=tmp_path / "b", train_tokenizer=300, row_len=16, held_out=0)["notes"] == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"train_tokenizer": None}, "Give one of --tokenizer"),
        ({"tokenizer": "a"}, "Give one of --tokenizer"),
        ({"row_len": 0}, "--row-len 0: "),
        ({"held_out": 1.0}, "--held-out 1.0: "),
        ({"seed": -1}, "--seed -1: "),
        ({"processes": 0}, "--processes 0: "),
    ],
)
def test_unusable_settings_are_refused(source: Path, tmp_path: Path, settings: dict[str, object], says: str) -> None:
    with pytest.raises(CorpusError, match=says):
        prepared(source, tmp_path / "c", **settings)


def test_preparing_loads_no_torch() -> None:
    code = "import sys, predistill.corpus, predistill.stages.prepare; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.data
@pytest.mark.parametrize(("name", "id_dtype"), [("smollm2", "<u2"), ("qwen3", "<u4")])
def test_real_tokenizers_give_back_real_text(tmp_path: Path, name: str, id_dtype: str) -> None:
    packed = DATA / "tokenizers" / f"{name}.tokenizer.json.zst"
    if not packed.is_file():
        pytest.skip("no $PREDISTILL_DATA with the real tokenizers")
    with zstandard.open(packed) as file:
        (tmp_path / "tokenizer.json").write_bytes(file.read())
    with zstandard.open(DATA / "corpora" / "zh_poetry.jsonl.zst", "rt", encoding="utf-8") as lines:
        texts = [json.loads(next(lines))["text"] for _ in range(300)]
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = prepared(source, tmp_path / "c", train_tokenizer=None, tokenizer=tmp_path / "tokenizer.json")
    assert corpus.manifest["id_dtype"] == id_dtype
    assert not Counter(documents_of(corpus)) - Counter(texts)
