"""A run in training on a terminal and in a log: what is shown is what the records say, at any width, for little."""

from __future__ import annotations

import io
import re
import time
from typing import Any

import pytest
from rich.console import Console

from predistill import display
from predistill.display import DRAW_SECONDS, shown_training
from predistill.pace import SPARKS, Cost, Progress

STEPS, TOKENS, SECONDS = 1000, 4096, 0.5
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
FINDING = {
    "kind": "spike", "step": 400, "since": 400, "severe": True, "value": 9.0, "limit": 4.0, "action": "warn",
    "sentence": "step 400: the LM loss is 9.00 and was 3.02 before it. Lower lr.peak [or set optimizer.clip].",
}  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the display believes it is."""
    now = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def step_record(step: int, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "step", "step": step, "tokens": step * TOKENS, "loss": 2.0 + 5.0 / step, "lm": 3.25, "kd": 2.125,
        "kl": 0.312, "alpha": 0.9, "lr": 3e-3, "grad_norm": 0.77, "seconds": SECONDS * step,
        "tokens_per_s": TOKENS / SECONDS, "stall_s": 0.1 * SECONDS,
    } | changes  # fmt: skip


def heldout_record(step: int, loss: float, corpus: str = "corpora/nano") -> dict[str, Any]:
    return {
        "kind": "heldout", "step": step, "tokens": step * TOKENS, "loss_nats": loss, "ece": 0.01, "corpus": corpus
    }  # fmt: skip


def progress_at(step: int, clock: list[float], **changes: Any) -> Progress:
    progress = Progress("nano-pd", STEPS, lambda: Cost(1e6, 1e11))
    for taken in range(1, step + 1):
        clock[0] += 2 * SECONDS  # half of the time goes to what is not a step
        progress.take(step_record(taken, **changes))
    return progress


def drawn(progress: Progress, width: int, **options: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, **options)
    console.print(display._Panel(progress))
    assert isinstance(console.file, io.StringIO)
    return ESCAPES.sub("", console.file.getvalue()).splitlines()


def test_rates_and_the_time_left_are_those_of_the_trailing_window(clock: list[float]) -> None:
    progress = progress_at(400, clock)
    assert progress.share_done == 0.4
    assert progress.seconds_left == pytest.approx(600 * 2 * SECONDS)
    assert progress.tokens_per_s == pytest.approx(TOKENS / SECONDS)
    assert progress.mfu == pytest.approx(1e6 * TOKENS / SECONDS / 1e11)
    assert progress.stall_share == pytest.approx(0.1)
    for step in range(401, 701):  # from here on twice as slow
        clock[0] += 4 * SECONDS
        progress.take(step_record(step, seconds=SECONDS * 400 + 2 * SECONDS * (step - 400)))
    assert progress.seconds_left == pytest.approx(300 * 4 * SECONDS)
    assert progress.tokens_per_s == pytest.approx(TOKENS / SECONDS / 2)


def test_a_resumed_run_is_timed_from_where_it_was_resumed(clock: list[float]) -> None:
    progress = Progress("nano-pd", STEPS)
    progress.take(step_record(900))
    assert progress.seconds_left is None
    assert progress.tokens_per_s == TOKENS / SECONDS
    clock[0] += 3.0
    progress.take(step_record(901))
    assert progress.seconds_left == pytest.approx(99 * 3.0)
    assert progress.mfu is None


def test_a_run_that_goes_back_to_a_checkpoint_is_timed_anew(clock: list[float]) -> None:
    progress = progress_at(400, clock)
    for step in range(301, 311):
        clock[0] += 2 * SECONDS
        progress.take(step_record(step))
    assert progress.share_done == 0.31
    assert progress.seconds_left == pytest.approx(690 * 2 * SECONDS)


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_the_panel_shows_every_value_and_fits_its_width(clock: list[float], width: int) -> None:
    progress = progress_at(400, clock)
    for record in (heldout_record(350, 2.5), heldout_record(400, 2.25), FINDING):
        progress.take(record)
    lines = drawn(progress, width)
    text = " ".join(" ".join(line.strip("│ ") for line in lines).split())
    assert {len(line) for line in lines} == {min(width, 100)}
    for shown in (
        "nano-pd", "step 400 of 1,000", "40%", "10 min left", "loss 2.013", "lm 3.250", "kd 2.125", "kl 0.312",
        "alpha 0.90", "lr 3.0e-03", "grad norm 0.77", "tokens 1.64M", "tokens/s 8,192", "MFU 8.2%", "waiting 10.0%",
        "held-out 2.250 -0.250 at step 400", str(FINDING["sentence"]),
    ):  # fmt: skip
        assert shown in text, shown
    assert len(lines) <= 16


def test_the_panel_of_a_plain_run_has_no_empty_places(clock: list[float]) -> None:
    text = "\n".join(drawn(progress_at(40, clock, kd=None, kl=None), 80))
    assert "kd" not in text
    assert "held-out" not in text
    assert "starting" in "\n".join(drawn(Progress("new", STEPS), 60))


def test_several_corpora_have_a_line_each_and_one_needs_no_name(clock: list[float]) -> None:
    progress = progress_at(40, clock)
    progress.take(heldout_record(40, 2.5))
    assert "corpora/nano" not in "\n".join(drawn(progress, 80))
    progress.take(heldout_record(40, 3.5, "corpora/chinese"))
    text = "\n".join(drawn(progress, 80))
    assert re.search("held-out  2.500 .*corpora/nano", text)
    assert re.search("held-out  3.500 .*corpora/chinese", text)


def test_what_is_not_finite_is_null_in_a_record_and_nan_on_the_screen(clock: list[float]) -> None:
    progress = progress_at(40, clock, loss=None, lm=None, kd=None, grad_norm=None)
    progress.take(heldout_record(40, 3.0))
    progress.take({**heldout_record(41, 0.0), "loss_nats": None})
    words = "\n".join(drawn(progress, 60))
    assert re.search(r"loss\s+nan", words)
    assert re.search(r"held-out\s+nan", words)
    assert "kd" not in words


def test_the_loss_so_far_is_drawn_in_its_order_and_never_too_long(clock: list[float]) -> None:
    for steps in (2, 24, 25, 400, 5000):
        course = progress_at(steps, clock).course()
        assert 2 <= len(course) <= 24
        heights = [SPARKS.index(block) for block in course]
        assert heights == sorted(heights, reverse=True), "the loss of these records only falls"
    assert heights[0] == len(SPARKS) - 1
    assert heights[-1] == 0


def test_a_terminal_that_knows_ascii_alone_gets_ascii(clock: list[float]) -> None:
    progress = progress_at(400, clock)
    console = Console(file=io.TextIOWrapper(raw := io.BytesIO(), encoding="ascii"), width=80, force_terminal=True)
    console.print(display._Panel(progress))
    console.file.flush()
    assert b"nano-pd" in raw.getvalue()


def test_a_log_has_a_line_every_15_seconds_one_at_the_end_and_findings_at_once(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with shown_training("nano-pd", steps=STEPS) as show:
        for step in range(1, STEPS + 1):
            clock[0] += 1.0
            show(step_record(step))
            if step == 400:
                show({**FINDING, "kind": "finding"})
                show(heldout_record(400, 2.25))
                assert capsys.readouterr().err.splitlines()[-1] == FINDING["sentence"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 600 // 15 + 1
    assert lines[0] == (
        "nano-pd: 405 of 1,000 steps, 10 min left  loss 2.012  lm 3.250  kd 2.125  alpha 0.90  lr 3.0e-03  "
        "8,192 tokens/s  held-out 2.250"
    )
    assert lines[-1].startswith("nano-pd: 1,000 of 1,000 steps, 0 s left")


def test_nothing_is_shown_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_training("nano-pd", steps=STEPS, quiet=True) as show:
        show(step_record(STEPS))
        show({**FINDING, "kind": "finding"})
    assert capsys.readouterr() == ("", "")


def test_a_terminal_is_drawn_on_at_most_four_times_a_second_and_never_scrolls(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    with shown_training("nano-pd", steps=STEPS) as show:
        for step in range(1, STEPS + 1):
            clock[0] += 0.01
            show(step_record(step, seconds=0.01 * step))
    shown = capsys.readouterr().err
    drawings = shown.count("step ")
    assert 10 < drawings <= 10 / DRAW_SECONDS + 3
    up = [int(rows or 1) for rows in re.findall(r"\x1b\[(\d*)A", shown)]
    assert len(up) >= drawings - 2, "every drawing goes back to where the one before it began"
    assert "1,000 of 1,000" in ESCAPES.sub("", shown).splitlines()[-1]


def test_no_color_has_none(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    with shown_training("nano-pd", steps=STEPS) as show:
        show(step_record(1))
        clock[0] += 1
        show({**FINDING, "kind": "finding"})
    codes = {code for codes in re.findall(r"\x1b\[([0-9;]*)m", capsys.readouterr().err) for code in codes.split(";")}
    assert not codes & {str(code) for code in (*range(30, 38), *range(90, 98), 38)}


def test_a_record_between_two_drawings_costs_under_a_tenth_of_a_millisecond() -> None:
    progress = Progress("nano-pd", 10_000)
    records = [step_record(step) for step in range(1, 5001)]
    costs = []
    for start in range(0, 5000, 1000):
        began = time.process_time()
        for record in records[start : start + 1000]:
            progress.take(record)
        costs.append((time.process_time() - began) / 1000)
    assert min(costs) < 1e-4
