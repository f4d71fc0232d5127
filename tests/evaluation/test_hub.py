"""Rows in the Hub's columns, loaded for real from local folders, are the rows of our files; and nothing goes out."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks.hellaswag.utils as hellaswag
import pytest
import yaml

from predistill.errors import RunError
from predistill.evaluation.hub import hub_rows
from predistill.evaluation.rows import asked_rows
from predistill.evaluation.suites import Task, chosen_tasks, task_names
from tests.evaluation.ours import FILES, lines_of, write_tasks
from tests.evaluation.theirs import their_columns

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def _nothing_goes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Caches in the test's own folder, and no way out."""

    def refuse(*_: Any) -> None:
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def hub_columns(name: str, row: Row) -> Row:
    """A row of ours as the Hub has it."""
    if name == "c3":
        columns = {"question": row["question"], "choice": row["choices"], "answer": row["choices"][row["answer"]]}
        return {"id": 0, "context": row["context"].split("\n"), **columns}
    columns = their_columns(name, row)
    return {**columns, "answerKey": f"{columns['answerKey']} "} if name == "openbookqa" else columns


def save_as_hub(folder: Path, task: Task, rows: dict[str, Sequence[Row]]) -> Task:
    """A data set folder of `rows` by split, in the Hub's columns and configurations; the task, pointed to it."""
    hub, key = task.hub, task.rows.group
    configs: dict[str, dict[str, str]] = {}
    for split, members in rows.items():
        for row in members:
            config = row[key] if hub.name == "each" and key is not None else hub.name or "default"
            file = folder / config / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("ab") as lines:
                lines.write(lines_of([hub_columns(task.name, row)]))
            configs.setdefault(config, {})[split] = str(file.relative_to(folder))
    described = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in files.items()]}
        for name, files in configs.items()
    ]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': described}, sort_keys=False)}---\n")
    return replace(task, hub=replace(hub, path=str(folder)))


def task_of(words: str) -> Task:
    (task,) = chosen_tasks(words)
    return task


def rows_of(task: Task) -> dict[str, Sequence[Row]]:
    """Our rows by the Hub's splits."""
    splits = [(task.hub.split, task.rows.file)]
    if task.hub.shots is not None and task.rows.shots is not None:
        splits.append((task.hub.shots, task.rows.shots))
    return {split: FILES[file] for split, file in splits}


def without_ids(rows: Sequence[Row]) -> list[Row]:
    return [{key: value for key, value in row.items() if key != "id"} for row in rows]


@pytest.mark.parametrize("name", task_names())
def test_the_hubs_rows_are_those_of_our_files(name: str, tmp_path: Path) -> None:
    plain = task_of(name)
    task = save_as_hub(tmp_path / "hub", plain, rows_of(plain))
    rows, shown = hub_rows(task)
    ours = rows_of(plain)
    assert without_ids(rows) == without_ids(ours[task.hub.split])
    assert [row["id"] for row in rows] == [f"{name}-{task.hub.split}-{i}" for i in range(len(rows))]
    shots = ours[task.hub.shots] if task.shots and task.hub.shots is not None else []
    assert without_ids(shown) == without_ids(shots)
    assert all(list(row)[1:] == list(task.rows.form) for row in [*rows, *shown])


@pytest.mark.parametrize("name", ["mmlu", "c3", "gsm8k:2", "blimp"])
def test_what_is_asked_from_the_hub_is_what_is_asked_from_files(name: str, tmp_path: Path) -> None:
    plain = task_of(name)
    task = save_as_hub(tmp_path / "hub", plain, rows_of(plain))
    there = asked_rows(task, data=None, limit=3)
    here = asked_rows(plain, data=write_tasks(tmp_path / "files", plain.name), limit=3)
    assert without_ids(there.rows) == without_ids(here.rows)
    assert {group: without_ids(rows) for group, rows in there.shots.items()} == {
        group: without_ids(rows) for group, rows in here.shots.items()
    }
    assert (there.of, there.notes, there.files) == (here.of, here.notes, [])
    assert there.places == [f"{task.hub.path} {row['id']}" for row in there.rows]


def test_hellaswags_brackets_are_left_out_as_lm_eval_leaves_them_out(tmp_path: Path) -> None:
    scenes = [
        {
            "activity_label": "Home and Garden",
            "ctx_a": "[header] How to air a room [title] Open it. [step] Wait  a while.",
            "ctx_b": "when IT is cool, ",
            "endings": [" [title] shut the window.", "Sing [substeps] twice.", "A  b", "[step] Go."],
            "label": "2",
        },
        {
            "activity_label": "Rowing",
            "ctx_a": "A man rows.",
            "ctx_b": "",
            "endings": ["a", "b", "c", "d"],
            "label": "0",
        },
    ]
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "validation.jsonl").write_bytes(lines_of(scenes))
    task = task_of("hellaswag")
    rows, _ = hub_rows(replace(task, hub=replace(task.hub, path=str(tmp_path / "hub"))))
    theirs = hellaswag.process_docs(datasets.Dataset.from_list(scenes))
    for row, wanted in zip(rows, theirs, strict=True):
        assert (row["context"], row["choices"], row["answer"]) == (wanted["query"], wanted["choices"], wanted["gold"])


def told(task: Task) -> str:
    with pytest.raises(RunError) as error:
        asked_rows(task, data=None, limit=None)
    words = str(error.value)
    assert words.startswith(f"{task.name}: its rows cannot be had from the Hub's {task.hub.path} (")
    assert words.endswith(f"). Give the folder of its file with --data: it reads {task.rows.file}.jsonl.")
    assert "\n" not in words
    return words


@pytest.mark.parametrize("name", task_names())
def test_a_hub_out_of_reach_is_one_sentence_that_names_the_folder_to_give(name: str) -> None:
    assert "offline" in told(task_of(name)).lower()


@pytest.mark.parametrize("offline", [True, False])
def test_no_network_is_said_whether_it_is_known_or_found_out(offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # the Hub's own client tries again, for 23 seconds
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    told(task_of("piqa"))


def test_other_columns_splits_and_configurations_are_one_sentence_too(tmp_path: Path) -> None:
    plain = task_of("piqa")
    task = save_as_hub(tmp_path / "hub", plain, rows_of(plain))
    assert "train" in told(replace(task, hub=replace(task.hub, split="train")))
    assert "other" in told(replace(task, hub=replace(task.hub, name="other")))
    told(replace(task, hub=replace(task.hub, path=str(tmp_path / "none"))))
    wino = task_of("winogrande")
    assert "(no column 'sentence')" in told(replace(wino, hub=replace(wino.hub, path=task.hub.path, name="default")))


BAD_ROWS: dict[str, tuple[str, Row]] = {
    "no such answer": ("ceval:0", {"answer": "E"}),
    "no answer": ("winogrande", {"answer": ""}),
    "null for a text": ("hellaswag", {"ctx_b": None}),
    "null for a list": ("kbqa", {"answers": None}),
    "number for a text": ("lambada", {"text": 7}),
    "an answer that is no choice": ("c3:0", {"answer": "别的"}),
    "a key that is no label": ("arc_easy", {"answerKey": "Z"}),
    "no label": ("boolq", {"label": None}),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_row_of_another_form_is_one_sentence_too(name: str, tmp_path: Path) -> None:
    words, change = BAD_ROWS[name]
    task = task_of(words)
    config = "physics" if task.hub.name == "each" else task.hub.name or "default"
    folder = tmp_path / "hub"
    folder.mkdir()
    row = hub_columns(task.name, FILES[task.rows.file][0]) | change
    (folder / "rows.jsonl").write_bytes(lines_of([row]))
    described = {"config_name": config, "data_files": [{"split": task.hub.split, "path": "rows.jsonl"}]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': [described]})}---\n")
    told(replace(task, hub=replace(task.hub, path=str(folder))))


def test_a_damaged_file_of_a_data_set_is_one_sentence_too(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    content = lines_of(hub_columns("piqa", row) for row in FILES["piqa.validation"])
    (tmp_path / "hub" / "validation.jsonl").write_bytes(content[:-9])
    task = task_of("piqa")
    told(replace(task, hub=replace(task.hub, path=str(tmp_path / "hub"))))
