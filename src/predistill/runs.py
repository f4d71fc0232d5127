"""A run directory is the database: what was asked, on what, step by step, and what came out.

recipe.yaml        the resolved recipe
environment.json   command, versions, machine, fingerprints of the inputs, derived sizes
metrics.jsonl      one JSON object a line: kind "step" or "heldout"
findings.jsonl     what the watch found wrong, one JSON object a line
checkpoints/       step-00000100/: resumable states, newest last
model/             the exported student
evaluation.json    what `evaluate` measured
DONE               written last: time, tokens, FLOPs
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from predistill.errors import RunError
from predistill.files import write_atomic

__all__ = [
    "EVALUATION",
    "NUMBERS",
    "Findings",
    "Metrics",
    "Run",
    "command_line",
    "find_runs",
    "read_json",
    "remove_run",
    "write_json",
]

EVALUATION = "evaluation.json"

# What a record never lacks; JSON has no NaN, and null stands there for what is not finite.
NUMBERS = ("loss", "lm", "grad_norm", "loss_nats", "ece")


class Run:
    """One run directory; every property reads the file anew, so a run may be watched while it goes on."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "recipe.yaml").exists():
            raise RunError(f"{self.path}: not a run (no recipe.yaml). Name a directory made by `predistill train`.")

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        recipe: Mapping[str, Any],
        environment: Mapping[str, Any],
        free: Collection[str] = (),
        force: bool = False,
    ) -> Run:
        """Create the run, or go on with it; refuses a run of another recipe or of other inputs. A finished one is left
        as it is.

        `free`: keys of a recipe that may have changed since. `force`: go on whatever has changed. What has is taken
        over, and stands under "changes" in environment.json.
        """
        path, changes = Path(path), []
        if (path / "recipe.yaml").exists():
            run = cls(path)
            changes = [_changed("recipe", run.recipe, recipe)]
            if read_json(run.path / "environment.json") is not None:
                changes.append(_changed("inputs", run.environment["identity"], environment["identity"]))
            for change in () if force else changes:
                _refuse(run, change, free)
            if run.done is not None:
                return run
            changes = [*run.environment.get("changes", ()), *(change for change in changes if change["from"])]
        elif path.exists() and any(path.iterdir()):
            raise RunError(f"{path}: not empty, and not a run. Name a new directory with --out.")
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(path / "recipe.yaml", yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True).encode())
        run = cls(path)
        run.write_json("environment.json", {**environment, **({"changes": changes} if changes else {})})
        return run

    @property
    def name(self) -> str:
        """The recipe's name."""
        return str(self.recipe.get("name", self.path.name))

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe."""
        path = self.path / "recipe.yaml"
        try:
            recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, yaml.YAMLError):
            recipe = None
        if not isinstance(recipe, dict):
            raise RunError(f"{path}: not a recipe. Restore it, or train into another directory.")
        return recipe

    @property
    def environment(self) -> dict[str, Any]:
        """What the run was made on and with; empty before training has started."""
        return read_json(self.path / "environment.json") or {}

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """What `evaluate` measured, or None."""
        return read_json(self.path / EVALUATION)

    @property
    def done(self) -> dict[str, Any] | None:
        """Time, tokens and FLOPs of a finished run; None while it goes on."""
        return read_json(self.path / "DONE")

    @property
    def model_path(self) -> Path:
        """The exported student's directory."""
        return self.path / "model"

    def metrics(self) -> list[dict[str, Any]]:
        """Every whole line of metrics.jsonl, in order; a torn last line is left out."""
        path = self.path / "metrics.jsonl"
        try:
            return _whole_lines(path.read_bytes()) if path.exists() else []
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise RunError(f"{path}: a line is not JSON ({error}). Restore the file, or train anew.") from None

    @property
    def findings(self) -> list[dict[str, Any]]:
        """What the watch found, in order; a line that a kill has torn is left out, wherever it stands."""
        path = self.path / "findings.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        found = [_parsed(line) for line in lines]
        return [finding for finding in found if finding is not None]

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write one of the run's JSON files, atomically."""
        write_json(self.path / name, content)


class Metrics:
    """The open metrics.jsonl of a run in training: cut to the step that is resumed, then appended to."""

    def __init__(self, run: Run, *, resume_step: int) -> None:
        path = run.path / "metrics.jsonl"
        kept = [line for line in run.metrics() if line["step"] <= resume_step]
        write_atomic(path, b"".join(map(_line, kept)))
        self._file: io.BufferedWriter = path.open("ab")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line; visible to readers at once, durable after `sync`."""
        self._file.write(_line(record))
        self._file.flush()

    def sync(self) -> None:
        """Make every line durable: called before a checkpoint counts as complete."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._file.close()


class Findings:
    """The open findings.jsonl of a run in training: cut to the step that is resumed, but for what was rolled back (its
    steps are left out again); then appended to, each line durable at once."""

    def __init__(self, run: Run, *, resume_step: int) -> None:
        path = run.path / "findings.jsonl"
        kept = [line for line in run.findings if line["step"] <= resume_step or line["action"] == "rollback"]
        write_atomic(path, b"".join(map(_line, kept)))
        self._file: io.BufferedWriter = path.open("ab")

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line."""
        self._file.write(_line(line))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close."""
        self._file.close()


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file of records; None where there is no file. Raises RunError for one that is not JSON."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"{path}: not readable as JSON ({error}). Delete it and run the command again.") from None
    if not isinstance(content, dict):
        raise RunError(f"{path}: not a JSON object. Delete it and run the command again.")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of records, atomically."""
    write_atomic(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def command_line() -> str:
    """What was typed, for a record: the verb and its arguments, or the script that called the library."""
    program = Path(sys.argv[0]).name
    return " ".join(["python", program, *sys.argv[1:]] if program.endswith(".py") else ["predistill", *sys.argv[1:]])


def find_runs(path: str | Path) -> list[Run]:
    """`path` itself when it is a run, or else every run below it, by name."""
    path = Path(path)
    if (path / "recipe.yaml").exists():
        return [Run(path)]
    return [Run(recipe.parent) for recipe in sorted(path.rglob("recipe.yaml"))]


def remove_run(path: Path) -> None:
    """Delete a run directory, after --overwrite asked for it; refuses what is not a run."""
    if path.exists():
        Run(path)
        shutil.rmtree(path)


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except (UnicodeDecodeError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None


def _whole_lines(data: bytes) -> list[dict[str, Any]]:
    whole = data[: data.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


def _changed(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What differs; a key that is null in one and absent in the other does not."""
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return {
        "what": what, "from": {key: old.get(key) for key in keys}, "to": {key: new.get(key) for key in keys}
    }  # fmt: skip


def _refuse(run: Run, change: Mapping[str, Any], free: Collection[str]) -> None:
    keys = [key for key in change["from"] if key not in free]
    if not keys:
        return
    key = keys[0]
    raise RunError(
        f"{run.path}: this run has other {change['what']}: {key} was {change['from'][key]}, now {change['to'][key]}"
        f"{f' (and {len(keys) - 1} more)' if len(keys) > 1 else ''}. "
        "Name another --out, start anew with --overwrite, or go on all the same with --force-resume."
    )
