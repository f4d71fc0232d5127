"""The quickstart: the whole path in one call, its words are its figures, and a second call does nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from predistill.errors import PredistillError
from predistill.runs import find_runs
from predistill.stages import quickstart as stage
from predistill.stages.quickstart import quickstart


class Shown:
    """Notes which pieces of work were shown, and how far each came."""

    def __init__(self) -> None:
        self.last: dict[str, tuple[int, int]] = {}

    @contextmanager
    def __call__(self, title: str, unit: str, scale: int = 1) -> Iterator[Callable[..., None]]:
        assert unit
        assert scale >= 1

        def advance(done: int, total: int, note: str = "") -> None:
            assert isinstance(note, str)
            self.last[title] = done, total

        yield advance


@pytest.fixture(scope="module")
def made(sample_text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Shown]:
    out, shown = tmp_path_factory.mktemp("quick") / "start", Shown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "TOKENS", 30_000)
        patch.setattr(stage, "HELD_OUT", 0.15)
        return out, quickstart(out, text=sample_text, seed=3, shown=shown), shown


def test_it_leaves_a_corpus_a_store_two_evaluated_runs_and_a_page(made: tuple[Path, dict[str, Any], Shown]) -> None:
    out, result, _ = made
    runs = {run.name: run for run in find_runs(out / "runs")}
    assert runs.keys() == {"lm-seed3", "pd-seed3"}
    for run in runs.values():
        assert run.done is not None
        assert run.evaluation is not None
        assert run.evaluation["heldout"]["teacher"] is not None
    assert Path(result["page"]) == out / "report.html"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "lm-seed3" in page
    assert "pd-seed3" in page


def test_the_two_students_differ_in_the_teacher_alone(made: tuple[Path, dict[str, Any], Shown]) -> None:
    lm, pd = (run.recipe for run in find_runs(made[0] / "runs"))
    assert {key for key in lm if lm[key] != pd[key]} == {"name", "corpus", "teacher"}
    assert lm["corpus"][0]["path"] == pd["corpus"][0]["path"]


def test_its_figures_are_those_of_the_records_and_stand_in_its_words(made: tuple[Path, dict[str, Any], Shown]) -> None:
    out, result, _ = made
    lm, pd = find_runs(out / "runs")
    assert lm.evaluation is not None
    assert pd.evaluation is not None
    assert result["lm_loss_nats"] == lm.evaluation["heldout"]["loss_nats"]
    assert result["pd_loss_nats"] == pd.evaluation["heldout"]["loss_nats"]
    assert result["gain_nats"] == result["lm_loss_nats"] - result["pd_loss_nats"]
    for figure in (
        f"{result['lm_loss_nats']:.3f}",
        f"{result['pd_loss_nats']:.3f}",
        f"{result['cpu_ratio']:.2f} times",
    ):
        assert figure in result["words"]
    assert len(result["words"].splitlines()) == 4


def test_every_piece_of_work_is_shown_to_its_end(made: tuple[Path, dict[str, Any], Shown]) -> None:
    last = made[2].last
    assert list(last) == ["prepare", "capture", "train lm", "evaluate lm", "train pd", "evaluate pd"]
    assert all(done == total > 0 for done, total in last.values())


def test_a_second_call_makes_nothing_anew(
    made: tuple[Path, dict[str, Any], Shown], sample_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, first, _ = made
    kept = [out / "corpus" / "manifest.json", out / "store" / "manifest.json"]
    kept += [run.path / "metrics.jsonl" for run in find_runs(out / "runs")]
    stamps = [path.stat().st_mtime_ns for path in kept]
    monkeypatch.setattr(stage, "TOKENS", 30_000)
    monkeypatch.setattr(stage, "HELD_OUT", 0.15)
    shown = Shown()
    again = quickstart(out, text=sample_text, seed=3, shown=shown)
    assert [path.stat().st_mtime_ns for path in kept] == stamps
    assert not {"prepare", "capture", "train lm", "train pd"} & shown.last.keys()
    assert again["pd_loss_nats"] == first["pd_loss_nats"]


def test_too_little_text_is_said_to_be_too_little(tmp_path: Path) -> None:
    text = tmp_path / "note.txt"
    text.write_text("A short note.")
    with pytest.raises(PredistillError, match=r"(?i)text"):
        quickstart(tmp_path / "out", text=text, shown=Shown())
