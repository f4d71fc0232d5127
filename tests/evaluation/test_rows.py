"""What is asked is what the files say: every line is checked, examples are not asked, and a limit is fair to groups."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from predistill.errors import CorpusError, PredistillError, RunError
from predistill.evaluation.rows import Asked, asked_rows
from predistill.evaluation.suites import Task, chosen_tasks, task_names
from tests.evaluation.ours import FILES, exam, lines_of, packed, write_tasks

Row = dict[str, Any]
PIQA = FILES["piqa.validation"]


def task_of(words: str) -> Task:
    (task,) = chosen_tasks(words)
    return task


def asked_of(words: str, data: Path, *, limit: int | None = None) -> Asked:
    return asked_rows(task_of(words), data=data, limit=limit)


def without_ids(rows: list[Row]) -> list[Row]:
    return [{key: value for key, value in row.items() if key != "id"} for row in rows]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write rows (or bytes) as NAME in the folder of the tasks, which is given back."""

    def write(name: str, rows: list[Row] | bytes) -> Path:
        content = rows if isinstance(rows, bytes) else packed(lines_of(rows), name)
        path = tmp_path / "tasks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return tmp_path / "tasks"

    return write


@pytest.mark.parametrize("packing", [".jsonl", ".jsonl.zst", ".jsonl.gz"])
@pytest.mark.parametrize("name", task_names())
def test_rows_are_those_of_the_file_whatever_it_is_packed_in(name: str, packing: str, tmp_path: Path) -> None:
    write_tasks(tmp_path / "eval", name, packing=packing)
    task = replace(task_of(name), shots=min(5, task_of(name).shots))
    for data in (tmp_path / "eval", tmp_path):  # in the folder, and in a folder of it
        asked = asked_rows(task, data=data, limit=None)
        assert asked.rows == FILES[task.rows.file]
        assert asked.of == len(asked.rows)
        file = tmp_path / "eval" / f"{task.rows.file}{packing}"
        assert asked.places == [f"{file} line {i + 1}" for i in range(asked.of)]
        used = [file, *([file.with_name(f"{task.rows.shots}{packing}")] if task.shots else [])]
        assert asked.files == [
            {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in used
        ]
        assert asked.notes == list(task.notes)


def test_a_file_in_the_folder_itself_comes_before_one_in_a_folder_of_it(write: Callable[..., Path]) -> None:
    write("a/piqa.validation.jsonl", PIQA[:1])
    data = write("piqa.validation.jsonl.zst", PIQA[1:3])
    assert asked_of("piqa", data).rows == PIQA[1:3]


def test_what_a_task_does_not_read_is_left_out_and_ids_are_texts(write: Callable[..., Path]) -> None:
    data = write("piqa.validation.jsonl", [{**PIQA[0], "id": 7, "split": "x"}, {**PIQA[1], "source": None}])
    assert asked_of("piqa", data).rows == [{**PIQA[0], "id": "7"}, PIQA[1]]


BAD_FILES: dict[str, tuple[str, bytes, type[PredistillError], str]] = {
    "empty": ("piqa.validation.jsonl", b"", RunError, ": holds no row. Restore the file: the task piqa reads it."),
    "blank": ("piqa.validation.jsonl", b"\n \n", RunError, ": holds no row. "),
    "not JSON": ("piqa.validation.jsonl", lines_of(PIQA[:2]) + b"{'id': 3}\n", CorpusError, " line 3: not JSON ("),
    "a cut line": ("piqa.validation.jsonl", lines_of(PIQA[:4])[:-20], CorpusError, " line 4: not JSON ("),
    "a list": ("piqa.validation.jsonl", b"\n[1, 2]\n", CorpusError, " line 2: not a JSON object"),
    "not UTF-8": ("piqa.validation.jsonl", lines_of(PIQA[:1]) + b'"\xff"', CorpusError, " line 2: byte 0xff is not"),
    "zst cut": ("piqa.validation.jsonl.zst", packed(lines_of(PIQA), ".zst")[:-9], CorpusError, "damaged or cut short"),
    "not zst": ("piqa.validation.jsonl.zst", lines_of(PIQA), CorpusError, "the packed file is damaged or cut short"),
    "gz cut": ("piqa.validation.jsonl.gz", packed(lines_of(PIQA), ".gz")[:-9], CorpusError, "damaged or cut short"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_damaged_is_named_with_its_line(name: str, write: Callable[..., Path]) -> None:
    file, content, kind, told = BAD_FILES[name]
    data = write(file, content)
    with pytest.raises(kind) as error:
        asked_of("piqa", data)
    words = str(error.value)
    assert words.startswith(f"{data / file}{told}" if told[:1] in (" ", ":") else f"{data / file}: ")
    assert told in words
    assert "\n" not in words


BAD_ROWS: dict[str, tuple[str, Row, str]] = {
    "no field": ("piqa", {"context": None}, 'no field "context" (found: answer, choices, id)'),
    "number for a text": ("piqa", {"context": 7}, 'field "context" is 7, not a text'),
    "blank text": ("boolq", {"passage": " \n"}, "field \"passage\" is ' \\n', not a text"),
    "no place": ("winogrande", {"sentence": "A b."}, 'not a text with "_" in the place that is asked for'),
    "text for a list": ("hellaswag", {"choices": "a, b"}, "field \"choices\" is 'a, b', not a list of texts"),
    "no choice": ("arc_easy", {"choices": []}, 'field "choices" is [], not a list of texts'),
    "blank choice": ("arc_easy", {"choices": ["a", ""]}, "not a list of texts"),
    "number among texts": ("kbqa", {"answers": ["a", 1]}, "field \"answers\" is ['a', 1], not a list of texts"),
    "one choice of two": ("winogrande", {"choices": ["Mia"]}, "field \"choices\" is ['Mia'], not a list of two texts"),
    "three choices of two": ("blimp", {"choices": ["a", "b", "c"]}, "not a list of two texts"),
    "three choices of four": ("mmlu:0", {"choices": ["a", "b", "c"]}, "not a list of four texts"),
    "answer as text": ("piqa", {"answer": "1"}, "field \"answer\" is '1', not a number from 0 to 1"),
    "answer as truth": ("piqa", {"answer": True}, 'field "answer" is True, not a number from 0 to 1'),
    "answer as letter": ("ceval:0", {"answer": "B"}, "field \"answer\" is 'B', not a number from 0 to 3"),
    "answer beyond": ("hellaswag", {"answer": 4}, 'field "answer" is 4, not a number from 0 to 3'),
    "answer below": ("hellaswag", {"answer": -1}, 'field "answer" is -1, not a number from 0 to 3'),
    "answer between": ("hellaswag", {"answer": 1.0}, 'field "answer" is 1.0, not a number from 0 to 3'),
    "answer beyond its choices": ("c3:0", {"choices": ["看", "听"], "answer": 2}, "is 2, not a number from 0 to 1"),
    "truth beyond": ("boolq", {"answer": 2}, 'field "answer" is 2, not a number from 0 to 1'),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_row_that_is_out_of_form_is_named_with_file_line_and_field(name: str, write: Callable[..., Path]) -> None:
    words, change, told = BAD_ROWS[name]
    task = task_of(words)
    good = FILES[task.rows.file]
    bad = {key: value for key, value in (good[1] | change).items() if value is not None}
    file = f"{task.rows.file}.jsonl"
    data = write(file, [good[0], bad, good[2]])
    with pytest.raises(RunError) as error:
        asked_of(words, data)
    said = str(error.value)
    assert said.startswith(f"{data / file} line 2: ")
    assert said.endswith(f"{told}. Restore the file: the task {task.name} reads it.")
    assert "\n" not in said


def test_a_long_value_is_not_repeated_whole(write: Callable[..., Path]) -> None:
    data = write("piqa.validation.jsonl", [{**PIQA[0], "context": ["x" * 5000]}])
    with pytest.raises(RunError, match=r"x\.\.\., not a text") as error:
        asked_of("piqa", data)
    assert len(str(error.value)) < 300


def test_examples_are_checked_like_rows(write: Callable[..., Path]) -> None:
    write("ceval.val.jsonl", FILES["ceval.val"])
    data = write("ceval.dev.jsonl", [*FILES["ceval.dev"][:3], {**FILES["ceval.dev"][3], "answer": 9}])
    with pytest.raises(RunError, match=r"ceval\.dev\.jsonl line 4: field \"answer\" is 9"):
        asked_of("ceval", data)
    assert len(asked_of("ceval:0", data).files) == 1  # not read where none is shown


def test_a_missing_folder_or_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    none = tmp_path / "none"
    with pytest.raises(RunError, match=r"none: no such folder\. Give --data the folder that holds the tasks' files"):
        asked_of("piqa", none)
    file = write_tasks(tmp_path, "piqa") / "piqa.validation.jsonl"
    with pytest.raises(RunError, match=r"piqa\.validation\.jsonl: no such folder"):
        asked_of("piqa", file)
    deep = write_tasks(tmp_path / "a" / "b", "boolq").parent.parent  # further down nobody looks
    with pytest.raises(RunError) as error:
        asked_of("boolq", deep)
    assert str(error.value) == (
        f"{deep}: no file boolq.validation.jsonl (or .jsonl.zst, .jsonl.gz) here or in a folder of it, which the task "
        "boolq reads. Put it there, or leave the task out."
    )
    (tmp_path / "eval").mkdir()
    (tmp_path / "ceval.val.jsonl").write_bytes(lines_of(FILES["ceval.val"]))
    with pytest.raises(RunError, match=r"no file ceval\.dev\.jsonl"):
        asked_of("ceval", tmp_path)


def test_a_limit_takes_rows_of_each_group_in_turn(write: Callable[..., Path]) -> None:
    names = ["a0", "a1", "a2", "b0", "c0", "c1"]
    rows = [{**FILES["blimp.all"][0], "id": name, "paradigm": name[0]} for name in names]
    data = write("blimp.all.jsonl", rows)
    in_turn = ["a0", "b0", "c0", "a1", "c1", "a2"]
    for limit in range(1, 8):
        asked = asked_of("blimp", data, limit=limit)
        assert [row["id"] for row in asked.rows] == in_turn[:limit]
        assert [rows[int(place.rsplit(" ", 1)[1]) - 1]["id"] for place in asked.places] == in_turn[:limit]
        assert asked.of == 6
    assert [row["id"] for row in asked_of("blimp", data).rows] == names
    ungrouped = write("piqa.validation.jsonl", PIQA)
    assert asked_of("piqa", ungrouped, limit=4).rows == PIQA[:4]


def test_examples_are_the_first_of_the_rows_own_group(tmp_path: Path) -> None:
    data = write_tasks(tmp_path, "mmlu", "gsm8k")
    dev = FILES["mmlu.dev"]
    asked = asked_of("mmlu:3", data)
    assert asked.shots == {"plain_geometry": dev[:3], "sea_law": dev[5:8]}
    assert asked.rows == FILES["mmlu.test"]
    assert asked.notes == []
    assert asked_of("gsm8k", data).shots == {None: FILES["gsm8k.train"][:8]}
    assert asked_of("gsm8k:0", data).shots == {None: []}


def test_the_sixth_mmlu_example_is_the_groups_first_row_which_is_not_asked(tmp_path: Path) -> None:
    asked = asked_of("mmlu", write_tasks(tmp_path, "mmlu"))
    dev, test = FILES["mmlu.dev"], FILES["mmlu.test"]
    assert asked.shots == {"plain_geometry": [*dev[:5], test[0]], "sea_law": [*dev[5:], test[3]]}
    assert asked.rows == [*test[1:3], *test[4:]]
    assert asked.of == 4
    (note,) = asked.notes
    assert note == (
        "mmlu: 6 examples are asked for and fewer are given: the first rows of each subject make up for them (2 rows), "
        "and are not scored."
    )
    limited = asked_of("mmlu", tmp_path, limit=3)
    assert [row["id"] for row in limited.rows] == [test[i]["id"] for i in (1, 4, 2)]
    assert (limited.shots, limited.of) == (asked.shots, 4)


def test_a_group_without_examples_of_its_own_gives_its_first_rows(write: Callable[..., Path]) -> None:
    write("ceval.val.jsonl", exam("ceval", "val", ("a", "b"), 4, "问"))
    data = write("ceval.dev.jsonl", exam("ceval", "dev", ("b", "unasked"), 2, "问"))
    asked = asked_of("ceval:2", data)
    assert {group: [row["id"] for row in rows] for group, rows in asked.shots.items()} == {
        "a": ["ceval-a-val-0", "ceval-a-val-1"],
        "b": ["ceval-b-dev-0", "ceval-b-dev-1"],
    }
    assert [row["id"] for row in asked.rows] == [
        *(f"ceval-a-val-{i}" for i in (2, 3)),
        *(f"ceval-b-val-{i}" for i in range(4)),
    ]
    assert "(2 rows)" in asked.notes[0]


def test_a_task_without_a_file_of_examples_shows_its_first_rows(write: Callable[..., Path]) -> None:
    data = write("piqa.validation.jsonl", PIQA)
    asked = asked_of("piqa:2", data)
    assert (asked.shots, asked.rows) == ({None: PIQA[:2]}, PIQA[2:])
    (note,) = asked.notes
    assert "the first rows of the file make up for them (2 rows), and are not scored." in note


@pytest.mark.parametrize(
    ("words", "there", "group"),
    [("piqa:6", 5, ""), ("piqa:90", 5, ""), ("ceval:7", 6, " in b"), ("ceval:6", 5, " in b")],
)
def test_more_examples_than_there_are_is_refused_and_what_is_offered_can_be_asked(
    words: str, there: int, group: str, write: Callable[..., Path]
) -> None:
    write("piqa.validation.jsonl", PIQA)
    last = 1 if words == "ceval:6" else 2
    write("ceval.val.jsonl", exam("ceval", "val", ("a",), 4, "问") + exam("ceval", "val", ("b",), last, "问"))
    data = write("ceval.dev.jsonl", exam("ceval", "dev", ("a", "b"), 5, "问"))
    name, _, shots = words.partition(":")
    with pytest.raises(RunError) as error:
        asked_of(words, data)
    assert str(error.value) == (
        f"{name}: asked with {shots} examples, and there are {there} beside a row to ask{group}. Ask for fewer: "
        f"--tasks {name}:{there}."
    )
    assert asked_of(f"{name}:{there}", data).rows


def test_no_two_examples_are_about_one_dialogue(tmp_path: Path) -> None:
    asked = asked_of("c3", write_tasks(tmp_path, "c3"))
    assert asked.shots == {None: FILES["c3.train"][:10:2]}
    assert asked.rows == FILES["c3.test"]  # two rows about one are two rows


def test_a_fingerprint_is_of_the_rows_that_are_asked(write: Callable[..., Path]) -> None:
    def fingerprint(rows: list[Row], limit: int | None = None, name: str = "piqa.validation.jsonl") -> str:
        return asked_of("piqa", write(name, rows), limit=limit).fingerprint

    whole = fingerprint(PIQA)
    assert whole == hashlib.sha256("\n".join(row["id"] for row in PIQA).encode()).hexdigest()
    assert fingerprint(PIQA, 99) == whole
    others = [
        fingerprint(PIQA, 5),
        fingerprint(PIQA[1:]),
        fingerprint([PIQA[1], PIQA[0], *PIQA[2:]]),
        fingerprint([{**PIQA[0], "id": "another"}, *PIQA[1:]]),
    ]
    assert len({whole, *others}) == 5


def test_rows_without_ids_are_told_apart_by_what_they_say(write: Callable[..., Path]) -> None:
    bare = without_ids(PIQA)
    first = asked_of("piqa", write("piqa.validation.jsonl", bare))
    assert without_ids(first.rows) == bare
    assert len({row["id"] for row in first.rows}) == len(bare)
    changed = asked_of("piqa", write("piqa.validation.jsonl", [*bare[:-1], {**bare[-1], "context": "Another?"}]))
    assert changed.fingerprint != first.fingerprint
    mixed = asked_of("piqa", write("piqa.validation.jsonl", [{**PIQA[0], "id": 3}, bare[1], {**PIQA[2], "id": None}]))
    assert [row["id"] for row in mixed.rows] == ["3", first.rows[1]["id"], first.rows[2]["id"]]
