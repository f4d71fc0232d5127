"""lm-eval's own task definitions, pointed at our rows put back into the Hub's columns: what our scores have to equal.

No test in itself; benchmarks/tasks.py has a use for it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.tasks._yaml_loader import load_yaml

from predistill.evaluation.answers import quiet

__all__ = ["their_columns", "their_scores"]

Row = dict[str, Any]
FOLDER = Path(lm_eval.tasks.__file__).parent
FILES = {
    "hellaswag": "hellaswag/hellaswag", "winogrande": "winogrande/default", "piqa": "piqa/piqa",
    "mmlu": "mmlu/default/mmlu_{group}", "kbqa": "webqs/webqs", "ceval": "ceval/ceval-valid_{group}",
    "gsm8k": "gsm8k/gsm8k", "arc_easy": "arc/arc_easy", "boolq": "super_glue/boolq/default",
    "openbookqa": "openbookqa/openbookqa", "lambada": "lambada/lambada_openai", "blimp": "blimp/{group}",
}  # fmt: skip
GROUPS = {"mmlu": "subject", "ceval": "subject", "blimp": "paradigm"}
NOT_OF_A_TASK = ("tag", "include", "group", "dataset_path", "dataset_name", "task_alias")


def their_scores(lm: Any, name: str, rows: Sequence[Row], *, shots: int, shown: Sequence[Row] = ()) -> dict[str, float]:
    """Metrics of lm-eval's own task `name` (by our name) on `rows` by `lm`; of several subjects the mean over rows.

    `shown`: the examples, with their subject.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.get(GROUPS.get(name, ""), ""), []).append(row)
    tasks = {}
    for group, members in groups.items():
        own = [row for row in shown if not group or row.get(GROUPS[name]) == group]
        with quiet():
            tasks[group or name] = _Theirs(name, group, members, own, shots)
    with quiet():
        found = evaluate(lm, {"tasks": tasks, "groups": {}}, bootstrap_iters=0)["results"]
    sizes = {group or name: len(members) for group, members in groups.items()}
    means = {}
    for metric in next(iter(found.values())):
        label, _, rest = metric.partition(",")
        if rest and not label.endswith("stderr"):
            values = {task: found[task][metric] for task in tasks}
            mean = sum(sizes[task] * value for task, value in values.items()) / len(rows)
            only = next(iter(values.values()))
            means[label if rest in ("none", "strict-match") else f"{label} ({rest})"] = mean if len(tasks) > 1 else only
    return means


class _Theirs(ConfigurableTask):
    def __init__(self, name: str, group: str, rows: Sequence[Row], shown: Sequence[Row], shots: int) -> None:
        self._rows, self._shown = ([their_columns(name, row) for row in given] for given in (rows, shown))
        file = FOLDER / f"{FILES[name].format(group=group)}.yaml"
        config = {k: v for k, v in load_yaml(file, resolve_func=True).items() if k not in NOT_OF_A_TASK}
        super().__init__(config={**config, "task": group or name, "num_fewshot": shots})

    def download(self, *_args: Any, **_kwargs: Any) -> None:
        asked = self.config.test_split or self.config.validation_split
        others = {self.config.training_split, self.config.fewshot_config and self.config.fewshot_config.split}
        self.dataset = {split: datasets.Dataset.from_list(self._shown or self._rows) for split in others - {None}}
        self.dataset[asked] = datasets.Dataset.from_list(self._rows)


def their_columns(name: str, row: Mapping[str, Any]) -> Row:
    """A row of ours as the Hub has it."""
    choices, answer = row.get("choices", []), row.get("answer", 0)
    match name:
        case "hellaswag":
            return {**_scene(row["context"]), "endings": choices, "label": str(answer)}
        case "winogrande":
            return {
                "sentence": row["sentence"], "option1": choices[0], "option2": choices[1], "answer": str(answer + 1)
            }  # fmt: skip
        case "piqa":
            return {"goal": row["context"], "sol1": choices[0], "sol2": choices[1], "label": answer}
        case "kbqa":
            return {"question": row["question"], "answers": row["answers"]}
        case "ceval":
            letters = dict(zip("ABCD", choices, strict=True))
            return {"question": row["question"], **letters, "answer": "ABCD"[answer]}
        case "gsm8k":
            return {"question": row["question"], "answer": row["solution"]}
        case "arc_easy" | "openbookqa":
            labels = list("ABCDEFGH"[: len(choices)])
            question = {"question" if name == "arc_easy" else "question_stem": row["question"]}
            return {**question, "choices": {"label": labels, "text": choices}, "answerKey": labels[answer]}
        case "boolq":
            return {"passage": row["passage"], "question": row["question"], "label": answer}
        case "lambada":
            return {"text": row["context"] + row["target"]}
        case "blimp":
            return {"sentence_good": choices[answer], "sentence_bad": choices[1 - answer]}
    return {key: row[key] for key in ("subject", "question", "choices", "answer")}


def _scene(context: str) -> Row:
    """HellaSwag's label, and its two halves: the second is one that capitalising leaves as it is."""
    label, _, scene = context.partition(": ")
    words = scene.split(" ")
    for i in range(len(words) - 1, 0, -1):
        second = " ".join(words[i:])
        if second.capitalize() == second:
            return {"activity_label": label, "ctx_a": " ".join(words[:i]), "ctx_b": second}
    raise AssertionError(f"no second half in {context!r}")
