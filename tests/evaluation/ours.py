"""A few rows of every task in the form that our task files read, in words of our own, and the files they make."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import zstandard

from predistill.evaluation.suites import chosen_tasks

__all__ = ["FILES", "SHOTS", "exam", "lines_of", "packed", "write_tasks"]

Row = dict[str, Any]
SHOTS = 10  # rows of a file of examples: more than any task asks for


def write_tasks(folder: Path, *names: str, packing: str = ".jsonl") -> Path:
    """The files of the tasks `names` in `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (task,) = chosen_tasks(name)
        for file in filter(None, (task.rows.file, task.rows.shots)):
            (folder / f"{file}{packing}").write_bytes(packed(lines_of(FILES[file]), packing))
    return folder


def lines_of(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """JSON, a row a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def packed(content: bytes, packing: str) -> bytes:
    """`content` as a file of that ending holds it."""
    if packing.endswith(".zst"):
        return zstandard.ZstdCompressor().compress(content)
    return gzip.compress(content, mtime=0) if packing.endswith(".gz") else content


def exam(task: str, split: str, subjects: Iterable[str], count: int, words: str) -> list[Row]:
    """`count` questions of each subject, with four choices."""
    return [
        {
            "id": f"{task}-{subject}-{split}-{i}", "subject": subject, "question": f"{words} {subject} {split} {i}?",
            "choices": [f"{i + k} {letter}" for k, letter in enumerate("北南西东")], "answer": (i * 3) % 4,
        }
        for subject in subjects
        for i in range(count)
    ]  # fmt: skip


def _numbered(task: str, split: str, rows: Iterable[Row]) -> list[Row]:
    return [{"id": f"{task}-{split}-{i}", **row} for i, row in enumerate(rows)]


def _sums(split: str, count: int) -> list[Row]:
    return _numbered("gsm8k", split, (
        {"question": f"Lin has {i} pears and buys {i + 2} more. How many are there?",
         "solution": f"There are {i} + {i + 2} = <<{i}+{i + 2}={2 * i + 2}>>{2 * i + 2} pears.\n#### {2 * i + 2}"}
        for i in range(count)
    ))  # fmt: skip


def _facts(split: str, count: int) -> list[Row]:
    rivers = [("the Elbe", "the Elbe river"), ("the Po",), ("the Wei", "the Wei He"), ("the Ob",)]
    return _numbered("kbqa", split, (
        {"question": f"what river runs through town {i}", "answers": list(rivers[i % 4])} for i in range(count)
    ))  # fmt: skip


def _dialogues(split: str, count: int) -> list[Row]:
    """Every second row asks again about the dialogue before it."""
    asked = [("女的在做什么？", ["看书", "做饭", "睡觉"]), ("他们在谈什么？", ["天气", "一本书", "一本旧杂志", "考试"])]
    return _numbered("c3", split, (
        {"context": f"男：这本书你看了{i // 2 + 2}天了。\n女：快看完了。", "question": asked[i % 2][0],
         "choices": asked[i % 2][1], "answer": i % 2}
        for i in range(count)
    ))  # fmt: skip


FILES: dict[str, list[Row]] = {
    "hellaswag.validation": _numbered("hellaswag", "validation", (
        {"context": f"{what}: {who} in the yard. {then}", "choices": [f"{end} {i}." for end in ends], "answer": i % 4}
        for i, (what, who, then, ends) in enumerate([
            ("Washing a dog", "A man kneels", "He", ["fills a tub", "sings of the sea", "is a cup", "flies off"]),
            ("Planting beans", "Two women dig", "They", ["drop the seeds in", "paint a roof", "are beans", "read"]),
            ("Mending a bike", "A girl sits", "She", ["turns the wheel", "melts", "swims across", "bakes it"]),
            ("Sweeping", "A boy stands", "He", ["takes the broom", "sells the yard", "rains", "is swept away"]),
            ("Drying hay", "A farmer walks", "He", ["turns it over", "drinks it", "folds a letter", "ends"]),
        ])
    )),
    "winogrande.dev": _numbered("winogrande", "dev", (
        {"sentence": f"{a} gave {b} the key of house {i} because _ was leaving.", "choices": [a, b], "answer": i % 2}
        for i, (a, b) in enumerate([("Mia", "Tom"), ("Wei", "Ana"), ("Ole", "Kim"), ("Eva", "Jo"), ("Li", "Max")])
    )),
    "piqa.validation": _numbered("piqa", "validation", (
        {"context": f"How do I dry {i + 2} shirts?", "choices": [f"Hang {i + 2} on a line.", "Put them in a pond."],
         "answer": i % 2}
        for i in range(6)
    )),
    "mmlu.test": exam("mmlu", "test", ("plain_geometry", "sea_law"), 3, "What is true in"),
    "mmlu.dev": exam("mmlu", "dev", ("plain_geometry", "sea_law"), 5, "What is shown in"),
    "webquestions.test": _facts("test", 4),
    "webquestions.train": _facts("train", SHOTS),
    "c3.test": _dialogues("validation", 4),
    "c3.train": _dialogues("train", 2 * SHOTS),
    "ceval.val": exam("ceval", "val", ("law_basics", "physics"), 3, "下列哪一项正确"),
    "ceval.dev": exam("ceval", "dev", ("law_basics", "physics"), 5, "下列哪一项错误"),
    "gsm8k.test": _sums("test", 3),
    "gsm8k.train": _sums("train", SHOTS),
    "arc_easy.test": _numbered("arc_easy", "test", (
        {"question": f"What falls from cloud {i}?", "choices": ["rain", "stones", "milk", "sand"][: 3 + i % 2],
         "answer": i % 3}
        for i in range(4)
    )),
    "boolq.validation": _numbered("boolq", "validation", (
        {"passage": f"Salt lake {i} -- It holds no fish.", "question": f"does lake {i} hold fish", "answer": i % 2}
        for i in range(4)
    )),
    "openbookqa.test": _numbered("openbookqa", "test", (
        {"question": f"A stove at {i + 1} degrees will", "choices": ["freeze", "warm the room", "sing", "grow"],
         "answer": (i + 1) % 4}
        for i in range(4)
    )),
    "lambada_openai.test": _numbered("lambada", "test", (
        {"context": f"“Take boat {i},” she said.\nHe looked at the oars and rowed the", "target": " boat"}
        for i in range(4)
    )),
    "blimp.all": [
        {"id": f"blimp-{paradigm}-{i}", "paradigm": paradigm,
         "choices": [f"The {thing}s of {i} towns are old.", f"The {thing}s of {i} towns is old."], "answer": 0}
        for paradigm, thing in (("agreement_plural", "gate"), ("distractor_noun", "wall"))
        for i in range(3)
    ],
}  # fmt: skip
