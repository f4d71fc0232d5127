"""An object in a process of its own: it answers as one here would, and its end is said in a sentence."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from predistill.corpus import Corpus
from predistill.errors import CorpusError, RunError
from predistill.stages.apart import Apart


def test_it_answers_as_one_here_would_and_has_ended_afterwards(corpus: Path) -> None:
    with Apart(Corpus, name="corpus", path=corpus, split="held_out") as there:
        rows, _ = there.ask("rows", indices=[2, 0])
        with pytest.raises(CorpusError, match="no split"):
            there.ask("__init__", path=corpus, split="test")
        assert there.ask("__len__") == len(Corpus(corpus, split="held_out"))  # a refusal is of one question
    assert np.array_equal(rows, Corpus(corpus, split="held_out").rows([2, 0])[0])
    assert there._process.exitcode == 0


def test_what_cannot_be_made_is_refused_at_the_first_question(tmp_path: Path) -> None:
    with Apart(Corpus, name="corpus", path=tmp_path) as there, pytest.raises(CorpusError, match="no prepared corpus"):
        there.ask("__len__")


def test_a_process_that_was_killed_is_named(corpus: Path) -> None:
    with Apart(Corpus, name="models/large", path=corpus) as there:
        there.ask("__len__")
        assert there._process.pid is not None
        os.kill(there._process.pid, signal.SIGKILL)
        with pytest.raises(RunError, match="The process of models/large was ended by SIGKILL"):
            there.ask("__len__")
