"""Rows of tasks from the Hub's data sets, made into the form that our task files read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from predistill.errors import RunError
from predistill.evaluation.suites import Task

__all__ = ["hub_rows"]

Row = dict[str, Any]
LETTERS = "ABCD"


def hub_rows(task: Task) -> tuple[list[Row], list[Row]]:
    """The rows to ask, and those to show as examples, with the id that their place gives them.

    Raises RunError where the Hub cannot be reached, or has another form of them.
    """
    shown = _loaded(task, task.hub.shots) if task.shots and task.hub.shots is not None else []
    return _loaded(task, task.hub.split), shown


def _loaded(task: Task, split: str) -> list[Row]:
    import datasets
    from datasets.exceptions import DatasetsError

    hub, make = task.hub, _MAKE[task.name]
    try:
        names = datasets.get_dataset_config_names(hub.path) if hub.name == "each" else [hub.name]
        found = [(name, row) for name in names for row in datasets.load_dataset(hub.path, name, split=split)]
        return [{"id": f"{task.name}-{split}-{i}", **make(row, str(name))} for i, (name, row) in enumerate(found)]
    except (
        DatasetsError, OSError, ValueError, RuntimeError,  # of loading
        LookupError, TypeError, AttributeError,  # of a row that is made otherwise
    ) as error:  # fmt: skip
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if isinstance(error, KeyError):
            reason = f"no column {reason}"
        raise RunError(
            f"{task.name}: its rows cannot be had from the Hub's {hub.path} ({reason}). Give the folder of its file "
            f"with --data: it reads {task.rows.file}.jsonl."
        ) from None


def _hellaswag(row: Mapping[str, Any], _name: str) -> Row:
    scene = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {"context": _without_brackets(scene), "choices": [_without_brackets(end) for end in row["endings"]],
            "answer": int(row["label"])}  # fmt: skip


def _without_brackets(text: str) -> str:
    """WikiHow's headings, and what stood in brackets, as lm-eval leaves them out."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _winogrande(row: Mapping[str, Any], _name: str) -> Row:
    return {"sentence": row["sentence"], "choices": [row["option1"], row["option2"]], "answer": int(row["answer"]) - 1}


def _piqa(row: Mapping[str, Any], _name: str) -> Row:
    return {"context": row["goal"], "choices": [row["sol1"], row["sol2"]], "answer": int(row["label"])}


def _mmlu(row: Mapping[str, Any], _name: str) -> Row:
    return {key: row[key] for key in ("subject", "question", "choices")} | {"answer": int(row["answer"])}


def _kbqa(row: Mapping[str, Any], _name: str) -> Row:
    return {"question": row["question"], "answers": list(row["answers"])}


def _c3(row: Mapping[str, Any], _name: str) -> Row:
    context, choices = "\n".join(row["context"]), list(row["choice"])
    return {"context": context, "question": row["question"], "choices": choices, "answer": choices.index(row["answer"])}


def _ceval(row: Mapping[str, Any], name: str) -> Row:
    return {"subject": name, "question": row["question"], "choices": [row[letter] for letter in LETTERS],
            "answer": LETTERS.index(row["answer"])}  # fmt: skip


def _gsm8k(row: Mapping[str, Any], _name: str) -> Row:
    return {"question": row["question"], "solution": row["answer"]}


def _arc_easy(row: Mapping[str, Any], _name: str) -> Row:
    answer = row["choices"]["label"].index(row["answerKey"])
    return {"question": row["question"], "choices": list(row["choices"]["text"]), "answer": answer}


def _openbookqa(row: Mapping[str, Any], name: str) -> Row:
    return _arc_easy({**row, "question": row["question_stem"], "answerKey": row["answerKey"].strip()}, name)


def _boolq(row: Mapping[str, Any], _name: str) -> Row:
    return {"passage": row["passage"], "question": row["question"], "answer": int(row["label"])}


def _lambada(row: Mapping[str, Any], _name: str) -> Row:
    context, _, last = row["text"].rpartition(" ")
    return {"context": context, "target": f" {last}"}


def _blimp(row: Mapping[str, Any], name: str) -> Row:
    return {"paradigm": name, "choices": [row["sentence_good"], row["sentence_bad"]], "answer": 0}


_MAKE: dict[str, Callable[[Mapping[str, Any], str], Row]] = {
    "hellaswag": _hellaswag, "winogrande": _winogrande, "piqa": _piqa, "mmlu": _mmlu, "kbqa": _kbqa, "c3": _c3,
    "ceval": _ceval, "gsm8k": _gsm8k, "arc_easy": _arc_easy, "openbookqa": _openbookqa, "boolq": _boolq,
    "lambada": _lambada, "blimp": _blimp,
}  # fmt: skip
