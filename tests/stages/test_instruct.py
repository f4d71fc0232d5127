"""Conversations as a corpus: every response is counted once, from any number of processes, and nothing else is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from transformers import AutoTokenizer

from predistill.assets import teacher_path, tokenizer_path
from predistill.corpus import Corpus, workers
from predistill.corpus.chat import PLAIN
from predistill.corpus.tokenizer import CorpusTokenizer, load_tokenizer
from predistill.errors import CorpusError
from predistill.objective import TopK
from predistill.stages.capture import capture
from predistill.stages.difference import select
from predistill.stages.prepare import prepare
from predistill.store import Store
from predistill.students.build import build_student, student_config
from predistill.students.export import export_student
from tests.chats import BRACKETS, CHATML, MESSAGES
from tests.made import Ended, files_below

DATA = Path(os.environ.get("PREDISTILL_DATA", Path(__file__).parents[3] / "shared" / "data"))


def made_records(count: int) -> list[dict[str, str]]:
    return [
        {"question": f"What is {n} plus {n % 7}?", "solution": f"春 {n} + {n % 7} = {n + n % 7}.\n#### {n + n % 7}"}
        for n in range(count)
    ]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in made_records(150)))
    return path


def prepared(source: Path, out: Path, **settings: Any) -> Corpus:
    base: dict[str, Any] = {"tokenizer": tokenizer_path(), "row_len": 32, "held_out": 0.1, "processes": 1}
    prepare(source, out=out, instruct=True, **{**base, **settings})
    return Corpus(out)


def counted_texts(corpus: Corpus) -> list[tuple[str, str]]:
    """Of each whole conversation in the rows: its text, and the text of its counted labels."""
    tokenizer: CorpusTokenizer = load_tokenizer(corpus.path)
    ids, counted = corpus.rows(range(len(corpus)))
    assert counted is not None
    label_N, counted_N = ids[:, 1:].ravel(), counted.ravel()

    def decoded(ids: np.ndarray) -> str:
        return tokenizer.tokenizer.decode(ids.tolist(), skip_special_tokens=False)

    stops = np.flatnonzero(corpus.closes(1, len(label_N) + 1)) + 1
    return [
        (decoded(label_N[start:stop]), decoded(label_N[start:stop][counted_N[start:stop]]))
        for start, stop in pairwise([0, *stops.tolist()])
    ]


def test_conversations_that_share_words_with_a_task_are_left_out_whatever_their_template(tmp_path: Path) -> None:
    taught = "a robe takes two bolts of blue fiber and half that much white fiber to make"
    records = [
        *made_records(60),
        {"question": "How is it made?", "solution": f"Well, {taught}."},
        {"messages": [{"role": "user", "content": f"{taught}?"}, {"role": "assistant", "content": "Yes."}]},
    ]
    source, task, template = (tmp_path / name for name in ("talks.jsonl", "task.jsonl", "chat.jinja"))
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    task.write_text(json.dumps({"question": taught.capitalize(), "answer_text": "3"}) + "\n")
    template.write_text(CHATML)
    for chat_template in None, template:
        corpus = prepared(
            source, tmp_path / f"{chat_template is None}", chat_template=chat_template, held_out=0, decontaminate=[task]
        )
        assert corpus.manifest["decontaminated"]["documents"] == 2
        assert corpus.split_stats["documents"] == 60
        assert "bolts" not in "".join(text for text, _ in counted_texts(corpus))
        corpus.verify()


def test_the_counted_labels_are_the_responses_and_their_end(source: Path, tmp_path: Path) -> None:
    prepared(source, tmp_path / "c")
    answers = {record["question"]: record["solution"] for record in made_records(150)}
    seen = []
    for split in "train", "held_out":
        corpus = Corpus(tmp_path / "c", split)
        end = corpus.manifest["tokenizer"]["end_token"]
        for text, counted in counted_texts(corpus):
            question = text.split("\n")[0].removeprefix("Question: ")
            assert text == f"Question: {question}\nAnswer: {answers[question]}{end}"
            assert counted == f" {answers[question]}{end}"
            seen.append(question)
        mask = np.fromfile(tmp_path / "c" / f"{split}.mask.bin", np.uint8)
        _, counted_NT = corpus.rows(range(len(corpus)))
        assert counted_NT is not None
        assert corpus.split_stats["counted"] == (mask & 1).sum() == counted_NT.sum()
        corpus.verify()
    assert len(seen) == len(set(seen)) > 140


@pytest.mark.parametrize("template", [None, "tokenizer"])
def test_any_number_of_processes_writes_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str | None
) -> None:
    monkeypatch.setattr(workers, "BATCH_BYTES", 1000)
    (tmp_path / "t.jinja").write_text(CHATML)
    given = tmp_path / "t.jinja" if template else None
    for processes in 1, 2, 3:
        prepared(source, tmp_path / str(processes), processes=processes, chat_template=given)
    one, two, three = (files_below(tmp_path / str(processes)) for processes in (1, 2, 3))
    assert one == two == three
    assert sorted(one) == [
        "chat_template.jinja",
        "held_out.bin",
        "held_out.mask.bin",
        "manifest.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "train.bin",
        "train.mask.bin",
    ]


def test_every_template_holds_out_the_same_conversations(source: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(CHATML)
    prepared(source, tmp_path / "a")
    prepared(source, tmp_path / "b", chat_template=tmp_path / "t.jinja", seed=1)

    def held_out(name: str) -> set[str]:
        return {counted.strip().split("\n")[0] for _, counted in counted_texts(Corpus(tmp_path / name, "held_out"))}

    assert len(held_out("a") & held_out("b")) >= len(held_out("a")) - 2 > 5  # what the last row cuts may differ
    documents = [Corpus(tmp_path / name, "held_out").split_stats["documents"] for name in "ab"]
    assert documents[0] == documents[1]


def test_a_tokenizer_trained_here_never_reads_the_template_s_own_words(source: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(BRACKETS)
    corpus = prepared(source, tmp_path / "c", tokenizer=None, train_tokenizer=300, chat_template=tmp_path / "t.jinja")
    (text, counted), *_ = counted_texts(corpus)
    end = corpus.manifest["tokenizer"]["end_token"]
    assert text.startswith("[INST] What is ")
    assert counted.startswith(" 春 ")
    assert counted.endswith(f" {end}")
    assert text.count(end) == 1, "the template's own end token is the stream's"


def test_the_template_is_kept_with_the_corpus_and_goes_out_with_the_student(source: Path, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    load_tokenizer(tokenizer_path()).save(tokenizer)
    config = json.loads((tokenizer / "tokenizer_config.json").read_text())
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": CHATML}))
    corpus = prepared(source, tmp_path / "c", tokenizer=tokenizer)
    assert corpus.manifest["chat_template"] | {"sha256": ""} == {"source": "tokenizer", "text": CHATML, "sha256": ""}
    assert (corpus.path / "chat_template.jinja").read_text() == CHATML
    assert "chat_template" not in json.loads((corpus.path / "tokenizer_config.json").read_text())
    student = student_config("nano-xs", vocab_size=corpus.vocab_size, row_len=32, end_id=corpus.end_id)
    export_student(
        build_student(student, seed=0, device=torch.device("cpu")),
        out=tmp_path / "model",
        tokenizer=corpus.path,
        card="",
    )
    written = AutoTokenizer.from_pretrained(tmp_path / "model").apply_chat_template(MESSAGES, tokenize=False)
    assert "<|im_start|>assistant\nIt is 5.<|im_end|>\n" in written
    again = prepared(source, tmp_path / "again", tokenizer=corpus.path)
    assert again.fingerprint == corpus.fingerprint


def test_a_row_may_hold_a_question_alone(tmp_path: Path) -> None:
    records = [{"question": "why " * 60, "answer": f"{n}"} for n in range(20)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    corpus = prepared(tmp_path / "t.jsonl", tmp_path / "c", row_len=16, held_out=0.0)
    _, counted = corpus.rows(range(len(corpus)))
    assert counted is not None
    assert not counted.any(axis=1).all()
    assert counted.any()


def test_the_document_mask_is_refused_only_where_it_would_cut_a_conversation(source: Path, tmp_path: Path) -> None:
    assert prepared(source, tmp_path / "a", document_mask=True).document_mask
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
    with pytest.raises(CorpusError, match=r'writes the end token "<\|endoftext\|>" within a conversation, where'):
        prepared(source, tmp_path / "b", document_mask=True, chat_template=tmp_path / "t.jinja")
    assert not (tmp_path / "b").exists()
    prepared(source, tmp_path / "b", chat_template=tmp_path / "t.jinja")


def test_a_part_of_a_corpus_keeps_its_marks(source: Path, tmp_path: Path) -> None:
    corpus = prepared(source, tmp_path / "c")
    select(corpus.path, out=tmp_path / "half", frac=0.5, seed=3)
    half = Corpus(tmp_path / "half")
    assert half.instruct
    assert set(counted_texts(half)) < set(counted_texts(corpus))
    assert abs(len(half) / len(corpus) - 0.5) < 0.1


def test_a_teacher_runs_over_conversations_as_over_texts(source: Path, tmp_path: Path) -> None:
    corpus = prepared(source, tmp_path / "c")
    capture(teacher_path(), corpus=corpus.path, out=tmp_path / "s", truncation=TopK(k=4))
    store = Store(tmp_path / "s")
    assert store.totals["positions"] == len(corpus) * 32
    assert store.manifest["corpus"]["fingerprint"] == corpus.fingerprint


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"text_field": "body"}, "--text-field body: does not go with --instruct"),
        ({"instruct": False, "chat_template": "t.jinja"}, r"--chat-template t\.jinja: is for conversations"),
        ({"chat_template": "none.jinja"}, r"none\.jinja: no such file"),
    ],
)
def test_unusable_settings_are_refused(source: Path, tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(CorpusError, match=says):
        prepare(source, out=tmp_path / "c", **{"tokenizer": tokenizer_path(), "instruct": True, **settings})
    assert not (tmp_path / "c").exists()


def test_preparing_in_json_and_in_words(call: Callable[..., Ended], source: Path, tmp_path: Path) -> None:
    with source.open("a") as file:
        file.write('{"question": "a", "solution": ""}\n')
    flags = (source, "--tokenizer", tokenizer_path(), "--row-len", "32", "--instruct", "--processes", "1")
    refused = call("prepare", *flags, "--out", tmp_path / "c")
    assert (refused.code, refused.out) == (2, "")
    assert "talks.jsonl line 151: no message of the assistant says anything. Remove it, or pass" in refused.words
    ended = call("prepare", *flags, "--out", tmp_path / "c", "--skip-bad", "--json")
    facts = json.loads(ended.out)
    assert (facts["skipped"], facts["chat_template"]["text"]) == ({"no response": 1}, PLAIN)
    assert facts["fingerprint"] == Corpus(tmp_path / "c").fingerprint
    train = facts["splits"]["train"]
    words = call("prepare", *flags, "--out", tmp_path / "c", "--skip-bad", "--overwrite").out
    said = f"the responses are {train['counted']:,} of {train['tokens'] - 1:,} tokens"
    assert f"{train['documents']:,} conversations to train on, in the words of the plain template: {said}" in words
    also = call("prepare", tmp_path / "c", "--out", tmp_path / "d", "--select", "0.5", "--instruct")
    assert "--instruct: does not go with --select" in also.words


@pytest.mark.data
@pytest.mark.parametrize("name", ["nano", "smollm2"])
def test_gsm8k_is_counted_solution_by_solution(tmp_path: Path, name: str) -> None:
    train = DATA / "eval" / "gsm8k.train.jsonl.zst"
    if not train.is_file():
        pytest.skip("no $PREDISTILL_DATA with GSM8K")
    tokenizer = tokenizer_path()
    if name == "smollm2":
        tokenizer = tmp_path / "tokenizer"
        tokenizer.mkdir()
        with zstandard.open(DATA / "tokenizers" / "smollm2.tokenizer.json.zst") as file:
            (tokenizer / "tokenizer.json").write_bytes(file.read())
        for file_name in "tokenizer_config.json", "chat_template.jinja":
            (tokenizer / file_name).write_bytes((DATA / "tokenizers" / f"smollm2.{file_name}").read_bytes())
    with zstandard.open(train, "rt", encoding="utf-8") as lines:
        records = [json.loads(next(lines)) for _ in range(400)]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    corpus = prepared(tmp_path / "gsm8k.jsonl", tmp_path / "c", tokenizer=tokenizer, row_len=256, held_out=0.05)
    closing, source = ("<|im_end|>", "tokenizer") if name == "smollm2" else ("<|endoftext|>", "plain")
    assert corpus.manifest["chat_template"]["source"] == source
    before = "" if name == "smollm2" else " "
    expected = {before + record["solution"].strip() + closing for record in records}
    found = [counted for _, counted in counted_texts(corpus)]
    assert set(found) <= expected
    assert len(found) > 350
