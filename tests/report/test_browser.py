"""The page as a browser shows it: on a phone and on a desk, by day and by night."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from predistill.assets import teacher_path
from predistill.runs import Run
from predistill.stages.evaluate import evaluate
from predistill.stages.report import report

from .chromium import Chromium
from .made_measures import made_footprint
from .made_runs import made_run

pytestmark = pytest.mark.browser

# For each figure: its name, and the marks (not text, not grid lines) that stand inside its frame with some extent.
MARKS = """
[...document.querySelectorAll("figure")].map(figure => {
  const frame = figure.querySelector("svg").getBoundingClientRect();
  const marks = [...figure.querySelectorAll("path.curve, rect.bar, line.interval, circle")].filter(mark => {
    const box = mark.getBoundingClientRect();
    const across = box.right > frame.left && box.left < frame.right + 1;
    return box.width + box.height > 1 && across && box.bottom > frame.top && box.top < frame.bottom + 1;
  });
  return {id: figure.id, marks: marks.length, width: frame.width, height: frame.height};
})
"""
# Text that a figure's box cuts off; labels, names and values that lie over each other, or that the zero line crosses.
CLASHES = """
[...document.querySelectorAll("figure")].flatMap(figure => {
  const texts = [...figure.querySelectorAll("text.label, text.name, text.value")];
  const boxes = texts.map(text => ({text: text.textContent, box: text.getBoundingClientRect()}));
  const frame = figure.querySelector(".plot").getBoundingClientRect();
  const out = [...figure.querySelectorAll("text")].filter(text => {
    const box = text.getBoundingClientRect();
    return box.width > 0 && (box.left < frame.left || box.right > frame.right || box.bottom > frame.bottom + 1);
  }).map(text => "cut: " + text.textContent);
  const over = boxes.flatMap(({text, box}, i) => boxes.slice(i + 1).filter(other =>
    Math.min(box.right, other.box.right) - Math.max(box.left, other.box.left) > 1 &&
    Math.min(box.bottom, other.box.bottom) - Math.max(box.top, other.box.top) > 4
  ).map(other => text + " over " + other.text));
  const crossed = boxes.filter(({box}) => [...figure.querySelectorAll("line.zero")].some(line => {
    const at = line.getBoundingClientRect();
    const tall = at.height > at.width;
    return tall && at.left > box.left && at.left < box.right && at.bottom > box.top + 4 && at.top < box.bottom - 4;
  })).map(({text}) => text + " crossed by the zero line");
  return [...out, ...over, ...crossed];
})
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def pages(lm_run: Run, pd_run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs trained here; and made ones: the quickstart's pair; a study with seeds, long names, a bad recipe and a
    run on its way; a sweep of one name; three that go on, one with findings, one without a step."""
    real, pair, study, sweep = (tmp_path_factory.mktemp(name) for name in ("real", "pair", "study", "sweep"))
    for run in (lm_run, pd_run):
        copy = shutil.copytree(run.path, real / run.path.name)
        evaluate(copy, teacher=teacher_path(), limit=8)
    made_run(pair / "lm", name="lm-seed0", measures=True)
    made_run(pair / "pd", name="pd-seed0", teacher=True, gain=0.28, measures=True)
    made_footprint(pair / "footprint.json")
    top_5 = {"truncation": {"kind": "top_k", "k": 5}}
    for seed in range(3):
        made_run(study / f"lm-{seed}", name="nano-lm", seed=seed, measures=True)
        made_run(
            study / f"pd-{seed}",
            name="nano-with-a-rather-long-name-for-a-recipe",
            seed=seed,
            teacher=True,
            gain=0.2 + 0.02 * seed,
            measures=True,
        )
        made_run(
            study / f"a-run-directory-with-a-long-name-{seed}",
            name="top-5",
            seed=seed,
            teacher=True,
            gain=-0.3,
            recipe=top_5,
            measures=True,
        )
    made_run(study / "going", name="top-5", seed=7, teacher=True, ended=0.4, recipe=top_5)
    going = tmp_path_factory.mktemp("going")
    corpora = ("corpora/nano", "corpora/a-corpus-with-a-rather-long-name/of-chinese-text")
    found = {0.1: "spike", 0.3: "spike", 0.55: "divergence"}
    made_run(going / "lm", name="lm", corpora=corpora, ended=0.7)
    made_run(going / "pd", name="pd", teacher=True, gain=0.3, corpora=corpora, ended=0.6, found=found)
    made_run(going / "new", name="new", teacher=True, ended=0.0, recipe=top_5)
    made_run(sweep / "lm", name="base", steps=20)
    for tau in (0.5, 1.0, 2.0, 5.0):
        for loss in ("kld", "nll"):
            recipe = {"temperature": {"kind": "static", "value": tau}, "loss": {"kind": loss}}
            made_run(
                sweep / f"{loss}{tau}",
                name="base",
                teacher=True,
                gain=0.1 / tau + (loss == "nll") * 0.01,
                steps=20,
                recipe=recipe,
            )
    return {path.name.rstrip("0123456789"): report([path]) for path in (real, pair, study, sweep, going)}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("name", ["real", "pair", "study", "sweep", "going"])
def test_the_page_fits_its_window_and_every_figure_shows_something(
    browser: Chromium, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    browser.open(pages[name], width=width, dark=dark)
    browser.value("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert browser.console == []
    assert browser.requests == [pages[name].as_uri()], "nothing from outside"
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth") <= width
    figures = browser.value(MARKS)
    compared = {"loss-1"} if name == "going" else {"difference"}
    later = {"reliability", "copying", "by-position", "by-frequency-change"} if name in ("pair", "study") else set()
    later |= {"cost-parameters-1", "cost-speed-1"} if name == "pair" else set()
    assert {figure["id"] for figure in figures} >= {"loss", "alpha", "lr", "store-1"} | compared | later
    for figure in figures:
        assert figure["marks"] >= 1, figure
        assert figure["width"] > 0.35 * min(width, 500), figure
        assert figure["height"] > 40, figure
    assert browser.value(CLASHES) == []


def test_the_table_scrolls_in_its_own_box_and_keeps_its_names_in_sight(
    browser: Chromium, pages: dict[str, Path]
) -> None:
    browser.open(pages["study"], width=390)
    box = "document.querySelector('.scroll')"
    assert browser.value(f"{box}.scrollWidth > {box}.clientWidth")
    before = browser.value("document.querySelector('tbody th a').getBoundingClientRect().left")
    browser.value(f"{box}.scrollLeft = 300")
    assert browser.value(f"{box}.scrollLeft") == 300
    assert browser.value("document.querySelector('tbody th a').getBoundingClientRect().left") == before


def test_night_and_day_differ_in_colour_alone(browser: Chromium, pages: dict[str, Path]) -> None:
    seen = {}
    for dark in (False, True):
        browser.open(pages["pair"], width=1280, dark=dark)
        paper = browser.value("getComputedStyle(document.documentElement).backgroundColor")
        line = browser.value("getComputedStyle(document.querySelector('path.curve.c1')).stroke")
        seen[dark] = (paper, line, browser.value("document.documentElement.scrollHeight"))
    assert seen[False][0] != seen[True][0]
    assert seen[False][1] != seen[True][1]
    assert seen[False][2] == seen[True][2]
