"""Long work on a terminal and in a log: plain lines now and then, the last one at the end, nothing when quiet."""

from __future__ import annotations

import itertools
import time

import pytest

from predistill import terminal
from predistill.terminal import progress


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that a call moves on by 10 seconds."""
    ticks = itertools.count(0.0, 10.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))


@pytest.mark.usefixtures("seconds")
def test_a_log_has_a_line_now_and_then_and_one_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("capture", unit="rows") as advance:
        for done in range(1, 1001):
            advance(done, 1000, "loss 3.1")
    lines = capsys.readouterr().err.splitlines()
    assert 5 < len(lines) < 1000
    assert all(line.startswith("capture: ") and line.endswith("loss 3.1") for line in lines)
    assert lines[-1].startswith("capture: 1,000 of 1,000, ")
    assert lines[-1].count(" 0 s left") == 1


def test_quick_work_has_its_last_line_only(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", unit="steps") as advance:
        for done in range(1, 51):
            advance(done, 50)
        advance(50, 50)
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_the_rate_counts_what_was_done_here_in_the_unit_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with progress("train", unit="tokens", scale=64) as advance:
        advance(500, 1000)  # resumed at 500
        now[0] += 20
        advance(700, 1000)
    # 200 steps of 64 tokens in 20 s; 300 steps to go at 10 a second.
    assert "train: 700 of 1,000, 640 tokens/s, 30 s left" in capsys.readouterr().err


def test_nothing_is_shown_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", unit="steps", quiet=True) as advance:
        advance(1, 1, "note")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_with_the_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    with progress("train", unit="steps") as advance:
        advance(1, 4, "loss 9.9")
        advance(4, 4, "loss 1.1")
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "loss 1.1" in shown
