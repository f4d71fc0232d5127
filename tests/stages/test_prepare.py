"""Preparing: every document once, the same bytes from any number of processes, and nothing half-made after a kill."""

from __future__ import annotations

import hashlib
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


PASSAGE = "Ethanol fuel takes the energy of grown biomass, which must be collected, dried, fermented and burned first."


def with_passages(tmp_path: Path) -> tuple[list[str], Path]:
    """Texts of which every fortieth has the passage within, and a file of them."""
    texts = [text if n % 40 else f"{text}\n{PASSAGE} {text}" for n, text in enumerate(made_texts(400))]
    path = tmp_path / "planted.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return texts, path


def tasks_of(tmp_path: Path, *passages: str) -> list[Path]:
    paths = [tmp_path / f"task{n}.jsonl" for n in range(len(passages))]
    for path, passage in zip(paths, passages, strict=True):
        rows = [{"passage": passage, "id": "a-0"}, {"question": "who was it", "answers": ["Ann"]}]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def test_training_documents_that_share_words_with_a_task_are_left_out_and_counted(tmp_path: Path) -> None:
    texts, planted = with_passages(tmp_path)
    tasks = tasks_of(tmp_path, PASSAGE, "a", PASSAGE.upper() + " And more of it.")
    summary = prepare(
        planted,
        out=tmp_path / "c",
        train_tokenizer=300,
        row_len=16,
        held_out=0.3,
        decontaminate=[tasks[0], tasks[2]],
    )
    left_out = [text for text in texts if PASSAGE in text and not is_held_out(split_hash(text.encode()), 0.3)]
    size = sum(len(text.encode()) for text in left_out)
    assert 0 < len(left_out) < sum(PASSAGE in text for text in texts), "some stand in the held-out split"
    facts = summary["decontaminated"]
    assert (facts["words"], facts["documents"], facts["bytes"]) == (13, len(left_out), size)
    assert facts["files"] == [
        {
            "name": task.name,
            "sha256": hashlib.sha256(task.read_bytes()).hexdigest(),
            "rows": 2,
            "short_rows": 1,
            "grams": grams,
            "documents": len(left_out),
        }
        for task, grams in zip([tasks[0], tasks[2]], [5, 9], strict=True)
    ]
    assert facts["grams"] == 9
    said = f"Left out {len(left_out)} training documents ({size:,} bytes) that share 13 words in a row with a task file"
    assert summary["notes"] == [
        f"{said}: {len(left_out)} with task0.jsonl, {len(left_out)} with task2.jsonl.",
        "2 of 4 task rows are shorter than that, and would not be found.",
    ]
    corpus = Corpus(tmp_path / "c")
    assert corpus.manifest["decontaminated"] == facts
    found = documents_of(corpus) + documents_of(Corpus(tmp_path / "c", "held_out"))
    assert not set(found) & set(left_out)
    assert not Counter(found) - Counter(texts)
    assert corpus.split_stats["documents"] + corpus.manifest["splits"]["held_out"]["documents"] == 400 - len(left_out)


def test_leaving_documents_out_changes_nothing_else(tmp_path: Path) -> None:
    _, planted = with_passages(tmp_path)
    whole = prepared(planted, tmp_path / "whole")
    part = prepared(planted, tmp_path / "part", decontaminate=tasks_of(tmp_path, PASSAGE))
    held_out = [Corpus(tmp_path / name, "held_out") for name in ("whole", "part")]
    assert held_out[0].split_stats == held_out[1].split_stats
    assert whole.tokenizer_path.read_bytes() == part.tokenizer_path.read_bytes()
    kept = [text for text in documents_of(whole) if PASSAGE not in text]
    found = documents_of(part)
    assert found == kept[: len(found)]
    assert 0 <= len(kept) - len(found) <= 1 + part.split_stats["dropped_tokens"] + 16
    assert whole.fingerprint != part.fingerprint
    part.verify()


def test_task_files_that_no_document_meets_change_no_token(source: Path, tmp_path: Path) -> None:
    summary = prepare(
        source,
        out=tmp_path / "a",
        train_tokenizer=300,
        row_len=16,
        held_out=0.1,
        decontaminate=tasks_of(tmp_path, PASSAGE)[0],
    )
    assert summary["notes"][0] == "No training document shares 13 words in a row with a task file: none was left out."
    without = prepared(source, tmp_path / "b")
    assert "decontaminated" not in without.manifest
    assert without.fingerprint == summary["fingerprint"]
    files = [{name: data for name, data in files_of(tmp_path / out).items() if name != "manifest.json"} for out in "ab"]
    assert files[0] == files[1]


def test_any_number_of_processes_leaves_the_same_documents_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "BATCH_BYTES", 1000)
    _, planted = with_passages(tmp_path)
    for processes in 1, 3:
        prepared(planted, tmp_path / str(processes), processes=processes, decontaminate=tasks_of(tmp_path, PASSAGE))
    assert files_of(tmp_path / "1") == files_of(tmp_path / "3")
    assert Corpus(tmp_path / "1").manifest["decontaminated"]["documents"] > 5


def test_a_task_file_that_cannot_be_read_leaves_nothing(source: Path, tmp_path: Path) -> None:
    (task,) = tasks_of(tmp_path, PASSAGE)
    task.write_text(task.read_text() + "{")
    with pytest.raises(CorpusError, match=r"task0\.jsonl line 3: not JSON"):
        prepared(source, tmp_path / "c", decontaminate=[task])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["task0.jsonl", "texts.jsonl"]


@pytest.mark.data
def test_rows_of_real_tasks_are_found_in_documents(tmp_path: Path) -> None:
    folder = DATA / "eval"
    if not folder.is_dir():
        pytest.skip("no $PREDISTILL_DATA with the task files")
    names = {"piqa.validation": "choices", "winogrande.dev": "sentence", "boolq.validation": "passage"}
    tasks = [folder / f"{name}.jsonl.zst" for name in names]
    chinese = DATA / "eval_noncommercial" / "ceval.dev.jsonl.zst"
    if chinese.is_file():
        tasks.append(chinese)
        names["ceval.dev"] = "explanation"
    planted = []
    for (name, field), task in zip(names.items(), tasks, strict=True):
        with zstandard.open(task, "rt", encoding="utf-8") as lines:
            rows = [json.loads(next(lines)) for _ in range(40)]
        for row in rows:
            text = row[field] if isinstance(row[field], str) else max(row[field], key=len)
            text = text.replace("_", row.get("choices", [""])[0]) if name.startswith("winogrande") else text
            words = len(text) / 2 if name.startswith("ceval") else len(text.split())
            if words > 20:
                planted.append((name, text))
    assert {name for name, _ in planted} == set(names)
    source = tmp_path / "texts.jsonl"
    made = made_texts(400)
    documents = [*made, *(f"{made[n]} {text}, {made[-n]}" for n, (_, text) in enumerate(planted))]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    corpus = prepared(source, tmp_path / "c", held_out=0, decontaminate=tasks)
    facts = corpus.manifest["decontaminated"]
    assert facts["documents"] == len(planted)
    counts = Counter(name for name, _ in planted)
    assert {file["name"].removesuffix(".jsonl.zst"): file["documents"] for file in facts["files"]} == counts
    assert corpus.split_stats["documents"] == 400


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
