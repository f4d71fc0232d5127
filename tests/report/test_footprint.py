from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from predistill.errors import RunError
from predistill.report.footprint import (
    Footprint,
    cost_charts,
    footprint_columns,
    footprint_words,
    read_footprint,
)

from .made_measures import made_footprint


def _changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Footprint:
    content = json.loads(made_footprint(path).read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return read_footprint(path)


def _bits(**bits: float | None) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for model in content["models"]:
            model["bits_per_byte"] = bits.get(model["name"].replace("-", "_"), model["bits_per_byte"])

    return change


def test_the_smaller_distilled_student_is_named_beside_the_plain_one_of_its_loss(tmp_path: Path) -> None:
    (words,) = footprint_words(read_footprint(made_footprint(tmp_path / "footprint.json")))
    assert words.startswith("The distilled pd-s (230k parameters) is as good as the plain lm-m (860k)")
    assert "27\N{NARROW NO-BREAK SPACE}% of the parameters" in words
    assert "times as fast" in words


def test_a_smaller_one_that_is_worse_than_every_plain_one_is_not_called_as_good(tmp_path: Path) -> None:
    found = _changed(tmp_path / "footprint.json", _bits(pd_xs=2.5, pd_s=2.4))
    (words,) = footprint_words(found)
    assert words.startswith("No smaller distilled student here is as good as a plain one")


def test_without_a_smaller_distilled_student_nothing_is_said(tmp_path: Path) -> None:
    def only_equal_sizes(content: dict[str, Any]) -> None:
        content["models"] = [model for model in content["models"] if model["name"] in ("lm-s", "pd-s", "nano-l")]

    assert footprint_words(_changed(tmp_path / "footprint.json", only_equal_sizes)) == []
    nothing_known = _bits(lm_xs=None, lm_s=None, lm_m=None)
    assert footprint_words(_changed(tmp_path / "footprint.json", nothing_known)) == []


def test_the_figures_have_a_point_for_every_model_whose_loss_is_known(tmp_path: Path) -> None:
    found = _changed(tmp_path / "footprint.json", _bits(lm_xs=None))
    charts = cost_charts(found, 1)
    assert [chart.id for chart in charts] == ["cost-parameters-1", "cost-speed-1"]
    for chart in charts:
        assert {label.text: label.colour for label in chart.labels} == {
            "lm-s": "lm", "lm-m": "lm", "pd-xs": "c1", "pd-s": "c1", "pd-m": "c1", "nano-l": "ink"
        }  # fmt: skip
        assert [dot.text for dot in chart.dots] == ["nano-l"], "the teacher is marked"
    by_size = {label.text: label.end[0] for label in charts[0].labels}
    assert by_size["pd-s"] == by_size["lm-s"] < by_size["pd-m"] < by_size["nano-l"]


def test_what_was_measured_of_nobody_has_no_column(tmp_path: Path) -> None:
    def bare(content: dict[str, Any]) -> None:
        for model in content["models"]:
            model |= {"acceptance": None, "peak_memory_bytes": None, "bits_per_byte": None}

    whole = dict(footprint_columns(read_footprint(made_footprint(tmp_path / "whole.json"))))
    found = _changed(tmp_path / "footprint.json", bare)
    assert set(whole) - set(dict(footprint_columns(found))) == {
        "accepted as draft", "teacher’s speed with it", "peak memory", "bits a byte"
    }  # fmt: skip
    assert whole["teacher’s speed with it"] == [None, *["1.14×"] * 6]
    assert cost_charts(found, 1) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c["models"][1].pop("parameters"), "no models.1.parameters"),
        (lambda c: c["models"][0]["batches"]["8"].pop("decode_tokens_per_second"), "models.0.batches.8.decode_tokens"),
        (lambda c: c.update(models={}), "models cannot"),
        (lambda c: c.pop("prompt_tokens"), "no prompt_tokens"),
    ],
)  # fmt: skip
def test_a_broken_key_is_named_with_its_file(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    with pytest.raises(RunError) as caught:
        _changed(tmp_path / "footprint.json", change)
    assert named in str(caught.value)
    assert str(tmp_path / "footprint.json") in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_file_that_is_no_object_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "footprint.json").write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=r"footprint\.json: not"):
        read_footprint(tmp_path / "footprint.json")
