"""Tasks through EleutherAI's lm-evaluation-harness: its prompts, its metrics, its filters; our rows and our model."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from typing import Any

import datasets
import lm_eval
import numpy as np
import numpy.typing as npt
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.utils import env

from predistill.evaluation.answers import Answers, quiet
from predistill.evaluation.paired import standard_error
from predistill.evaluation.rows import Asked
from predistill.evaluation.scores import marked
from predistill.evaluation.suites import Task

__all__ = ["measure_task"]

MAIN_FILTERS = ("none", "strict-match")  # what a metric is named by alone; another filter's name is added


def measure_task(
    answers: Answers, task: Task, asked: Asked, *, on_progress: Callable[[float], None] | None = None
) -> dict[str, Any]:
    """The record of one task: metrics with standard errors, and what was right row by row; docs/formats.md has it all.

    `on_progress` hears the share that is done. Raises RunError for a text that the model's tokenizer has no words for.
    """
    answers.begin(asked.places, on_progress)
    with quiet():
        loaded = _Rows(task, asked)
        found = evaluate(answers, {"tasks": {task.name: loaded}, "groups": {}}, bootstrap_iters=0)
    scores = _scores(found["samples"][task.name])
    return {
        "version": task.version,
        "shots": task.shots,
        "n": len(asked.rows),
        "of": asked.of,
        "headline": task.headline,
        "metrics": {name: _summary(name, values) for name, values in scores.items()},
        "correct": marked(scores[task.headline]),
        "rows": asked.fingerprint,
        "cut": len(answers.cut),
        "context": answers.max_length,
        "files": asked.files,
        "notes": asked.notes,
        "lm_eval": lm_eval.__version__,
        "opens_with": answers.opening,
        "example": _example(found["samples"][task.name][0]),
    }


class _Rows(ConfigurableTask):  # type: ignore[misc]  # lm-eval has no types
    """A task file whose rows are given; the examples of a row are those of its group."""

    def __init__(self, task: Task, asked: Asked) -> None:
        self._asked, self._group = asked, task.rows.group
        shown = {"sampler": "first_n", "samples": [row for rows in asked.shots.values() for row in rows]}
        super().__init__(
            config={
                **_compiled(task.asks),
                "task": task.name,
                "test_split": "test",
                "num_fewshot": task.shots,
                "fewshot_config": {**task.asks.get("fewshot_config", {}), **shown},
                "metric_list": [_metric(metric) for metric in task.metrics],
            }
        )

    def download(self, *_args: Any, **_kwargs: Any) -> None:
        self.dataset = {"test": datasets.Dataset.from_list(self._asked.rows)}

    def fewshot_context(self, doc: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.sampler.replace_df(self._asked.shots[None if self._group is None else doc[self._group]])
        return super().fewshot_context(doc, *args, **kwargs)


def _compiled(asks: Mapping[str, Any]) -> dict[str, Any]:
    """Templates read once, not once a row, which takes longer than a small model's answer."""
    compiled = dict(asks)
    for key in ("doc_to_text", "doc_to_choice", "doc_to_target"):
        if isinstance(asks.get(key), str) and "{{" in asks[key]:
            compiled[key] = _rendering(asks[key], literal=key != "doc_to_text")
    return compiled


def _rendering(words: str, *, literal: bool) -> Callable[[Mapping[str, Any]], Any]:
    """What renders a row as lm-eval would: where `literal`, what is written as a list is one."""
    template = env.from_string(words)

    def render(doc: Mapping[str, Any]) -> Any:
        text = template.render(**doc)
        return ast.literal_eval(text) if literal and text[:1] == "[" and text[-1:] == "]" else text

    return render


def _metric(metric: str | Mapping[str, Any]) -> dict[str, Any]:
    """As lm-eval wants it written."""
    named = {"metric": metric} if isinstance(metric, str) else dict(metric)
    up = named["metric"] != "perplexity"
    return {**named, "aggregation": "mean" if up else named["metric"], "higher_is_better": up}


def _scores(samples: list[dict[str, Any]]) -> dict[str, npt.NDArray[np.float64]]:
    """Each metric's value of each row, in the order of rows."""
    by_name: dict[str, list[tuple[int, float]]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            name = metric if sample["filter"] in MAIN_FILTERS else f"{metric} ({sample['filter']})"
            by_name.setdefault(name, []).append((sample["doc_id"], float(sample[metric])))
    return {name: np.array([value for _, value in sorted(values)]) for name, values in by_name.items()}


def _summary(name: str, values: npt.NDArray[np.float64]) -> dict[str, float]:
    """Mean and standard error; of a perplexity the exponential, and its error by the delta method."""
    mean, error = float(values.mean()), standard_error(values)
    if name == "perplexity":
        mean = math.exp(-mean)
        error *= mean
    return {"value": mean, "stderr": error}


def _example(sample: Mapping[str, Any]) -> dict[str, Any]:
    """One prompt with its choices and their scores (nats), or with what was written."""
    arguments = sample["arguments"]
    shown = {"prompt": arguments[0][0], "answer": sample["target"]}
    if isinstance(arguments[0][1], str):
        scored = sample["filtered_resps"]
        return {**shown, "choices": [argument[1] for argument in arguments], "scores": [float(s[0]) for s in scored]}
    return {**shown, "written": str(sample["resps"][0][0])}
