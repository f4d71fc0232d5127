"""The task part of `predistill evaluate`: which tasks on which rows, one after the other, each kept as soon as it is
measured; and what a suite of them says, alone and against a baseline."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from predistill.errors import RecipeError, RunError
from predistill.evaluation.paired import relative_change
from predistill.evaluation.rows import Asked, asked_rows
from predistill.evaluation.scores import comparable, cut_words, headline_scores
from predistill.evaluation.suites import Task, chosen_tasks
from predistill.fingerprint import file_sha256
from predistill.runs import Run, command_line

__all__ = ["Asking", "task_words"]

OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Asking:
    """Tasks with their rows, all read and checked before a model is loaded."""

    words: str
    tasks: list[tuple[Task, Asked]]
    limit: int | None
    baseline: Run | None

    @classmethod
    def of(cls, words: str, *, data: Path | None, limit: int | None, baseline: Path | None) -> Asking:
        """`words`: names of tasks and suites. Raises RecipeError or RunError for what cannot be asked."""
        tasks = chosen_tasks(words)
        if importlib.util.find_spec("lm_eval") is None:
            raise RecipeError(
                "Tasks are asked through lm-evaluation-harness, which is not installed. "
                'Run: pip install "predistill[eval]".'
            )
        asked = [(task, asked_rows(task, data=data, limit=limit)) for task in tasks]
        asking = cls(words, asked, limit, None if baseline is None else Run(baseline))
        asking._check_baseline()
        return asking

    def measure(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        weights: Path,
        opens_with: int | None,
        known: Mapping[str, Any],
        keep: Callable[[dict[str, Any]], None],
        on_progress: OnProgress | None = None,
    ) -> dict[str, Any]:
        """The section "tasks" of evaluation.json. `known` is what it held before: results of the same rows, words and
        `weights` are taken over, so that a stopped evaluation goes on; `keep` is called with the section after every
        task. `on_progress(rows done, rows, task)`."""
        from predistill.evaluation.answers import Answers
        from predistill.evaluation.harness import measure_task

        answers, sha256 = Answers(model, tokenizer, opens_with=opens_with), _weights_sha256(weights)
        section = {"results": dict(known.get("results", {})), "suites": dict(known.get("suites", {}))}
        done, total = 0, sum(len(asked.rows) for _, asked in self.tasks)
        for task, asked in self.tasks:
            if not _same(section["results"].get(task.name), task, asked, sha256, answers.opening):
                tell = _of_task(on_progress, done, len(asked.rows), total, task.name)
                result = measure_task(answers, task, asked, on_progress=tell)
                section["results"][task.name] = {
                    **result, "limit": self.limit, "weights_sha256": sha256, "command": command_line()
                }  # fmt: skip
                suites = section["suites"].items()  # a mean of what was measured before is not of what is known now
                section["suites"] = {words: suite for words, suite in suites if task.name not in suite["tasks"]}
                keep(section)
            done += len(asked.rows)
            if on_progress is not None:
                on_progress(done, total, task.name)
        section["suites"][self.words] = self._suite(section["results"])
        return section

    def _suite(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """The unweighted mean of the headline metrics, its standard error, and the change against the baseline."""
        names = [task.name for task, _ in self.tasks]
        metrics = [results[name]["metrics"][results[name]["headline"]] for name in names]
        mean = float(np.mean([metric["value"] for metric in metrics]))
        error = float(np.sqrt(sum(metric["stderr"] ** 2 for metric in metrics)) / len(metrics))
        baseline = None
        if self.baseline is not None:
            theirs = _results(self.baseline)
            pairs = [(headline_scores(results[name]), headline_scores(theirs[name])) for name in names]
            change = relative_change(pairs)
            baseline = {
                "run": self.baseline.name,
                "mean": float(np.mean([scores.mean() for _, scores in pairs])),
                "relative_change": None if change is None else change.change,
                "interval": None if change is None else list(change.interval),
            }
        return {"tasks": names, "limit": self.limit, "mean": mean, "stderr": error, "baseline": baseline}

    def _check_baseline(self) -> None:
        if self.baseline is None:
            return
        theirs = _results(self.baseline)
        for task, asked in self.tasks:
            wanted = {
                "version": task.version,
                "shots": task.shots,
                "rows": asked.fingerprint,
                "headline": task.headline,
            }
            if task.name not in theirs or not comparable(theirs[task.name], wanted):
                found = "not been asked" if task.name not in theirs else "been asked other rows or in another way in"
                raise RunError(
                    f"--baseline {self.baseline.path}: has {found} {task.name}. Evaluate it first, with the same "
                    "--tasks, --data and --limit."
                )


def task_words(section: Mapping[str, Any], words: str) -> str:
    """What was measured of the suite that is called `words`: a line a task, the mean, and what a reader has to know."""
    suite = section["suites"][words]
    results = {name: section["results"][name] for name in suite["tasks"]}
    lines = []
    for name, result in results.items():
        metric = result["metrics"][result["headline"]]
        shots = f"{result['shots']} shots" if result["shots"] else ""
        rows = f"{result['n']:,} of {result['of']:,} rows"
        score = f"{metric['value']:>6.1%} ± {metric['stderr']:.1%}"
        lines.append(f"{name:<11} {score}  {result['headline']:<11}  {rows:<20}  {shots}")
    lines.append(f"{'mean':<11} {suite['mean']:>6.1%} ± {suite['stderr']:.1%}  (± is one standard error)")
    if (baseline := suite["baseline"]) is not None:
        change, interval = baseline["relative_change"], baseline["interval"]
        against = f"against {baseline['run']} ({baseline['mean']:.1%}): "
        against += (
            f"{change:+.1%}, 95 % interval from {interval[0]:+.1%} to {interval[1]:+.1%} (paired bootstrap over rows)"
            if change is not None
            else "no relative change, since it may be 0"
        )
        lines.append(against)
    notes = list(dict.fromkeys(note for result in results.values() for note in result["notes"]))
    if cut := {name: (result["cut"], result["n"]) for name, result in results.items() if result["cut"]}:
        notes.append(cut_words(cut, results[next(iter(cut))]["context"]))
    return "\n".join([*(line.rstrip() for line in lines), *notes])


def _results(run: Run) -> Mapping[str, Any]:
    results: Mapping[str, Any] = ((run.evaluation or {}).get("tasks") or {}).get("results", {})
    return results


def _same(
    result: Mapping[str, Any] | None, task: Task, asked: Asked, sha256: Sequence[str], opening: str | None
) -> bool:
    """Whether a result that is there is what measuring would give."""
    import lm_eval

    if result is None:
        return False
    wanted = {
        "version": task.version, "shots": task.shots, "rows": asked.fingerprint, "files": asked.files,
        "weights_sha256": sha256, "opens_with": opening, "lm_eval": lm_eval.__version__, "notes": asked.notes,
    }  # fmt: skip
    return all(result.get(key) == value for key, value in wanted.items())


def _of_task(
    on_progress: OnProgress | None, before: int, rows: int, total: int, name: str
) -> Callable[[float], None] | None:
    """A task's share done as that of all."""
    return None if on_progress is None else lambda share: on_progress(before + int(share * rows), total, name)


def _weights_sha256(weights: Path) -> list[str]:
    files = [weights] if weights.is_file() else sorted(weights.glob("*.safetensors"))
    return [file_sha256(file) for file in files]
