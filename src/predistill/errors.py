"""Every error that a person is meant to read, in one tree.

    PredistillError      something the user must change: exit 2
    |-- CorpusError      a source, a tokenizer or a prepared corpus
    |-- StoreError       a teacher store
    |-- TeacherError     a teacher model
    |-- RecipeError      a recipe or a command-line setting
    `-- RunError         a run directory
    Stopped              stopped on request and saved: exit 3

A message says what was found, where, and what to do next. Whatever else escapes is our bug: exit 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CorpusError",
    "PredistillError",
    "RecipeError",
    "RunError",
    "Stopped",
    "StoreError",
    "TeacherError",
    "did_you_mean",
]


class PredistillError(Exception):
    """Something the user must change."""


class CorpusError(PredistillError):
    """A source text, a tokenizer or a prepared corpus is not usable as it is."""


class StoreError(PredistillError):
    """A teacher store is damaged, incomplete, or made for something else."""


class TeacherError(PredistillError):
    """A teacher model cannot be loaded or does not fit the corpus."""


class RecipeError(PredistillError):
    """A recipe or a setting on the command line is not valid."""


class RunError(PredistillError):
    """A run directory is not what the command needs."""


class Stopped(Exception):
    """Stopped on request, with everything saved; the same command goes on."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean "kld"?` for the nearest of `choices`, or nothing when none is near."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f'; did you mean "{near[0]}"?' if near else ""
