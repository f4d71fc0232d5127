"""What the templates of the later sections are filled with: tasks, calibration, loss in parts, copying, footprint. A
section without records is None or empty, and is not shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from markupsafe import Markup, escape

from predistill.report import breakdowns, calibration, footprint
from predistill.report.answers import example_prompts, task_rows, task_words
from predistill.report.footprint import Footprint
from predistill.report.gains import Gain
from predistill.report.geometry import Chart
from predistill.report.numbers import nats, percent
from predistill.report.table import Group
from predistill.report.tasks import Tasks

__all__ = [
    "calibration_section",
    "copying_section",
    "corpora_section",
    "footprint_section",
    "loss_sections",
    "tasks_section",
]

_KINDS = {"LM": "plain (LM)", "PD": "distilled (PD)"}


def tasks_section(tasks: Tasks | None, found: Sequence[Gain], colour: Mapping[str, str]) -> dict[str, Any] | None:
    """Words, table, notes, examples."""
    if tasks is None:
        return None
    rows = task_rows(tasks)
    said = ["± is a standard error over rows."]
    if any(cell and cell["change"] for row in rows for cell in row["cells"]):
        said.append(
            f"Below a distilled score: the difference from its baseline, with its {percent(0.95, 0)} interval (paired "
            "bootstrap over the same rows): in points for a task, relative for a mean."
        )
    if any(group.distilled for group in tasks.groups) and len(said) == 1:
        said.append("No distilled recipe here has answered the same rows as its baseline, so that none are compared.")
    if any(score.seeds > 1 for score in tasks.scores.values()):
        said.append("Several seeds are averaged; how much another seed would change is not in the intervals.")
    return {
        "words": task_words(tasks, found),
        "columns": [{"label": group.label, "colour": colour[group.label]} for group in tasks.groups],
        "rows": rows,
        "suites": len(tasks.suites),
        "note": " ".join(said),
        "notes": tasks.notes,
        "examples": example_prompts(tasks),
    }


def calibration_section(groups: Sequence[Group], colour: Mapping[str, str]) -> dict[str, Any] | None:
    """The diagram, the words, and a small table."""
    found = calibration.surenesses(groups)
    if not found:
        return None
    columns: tuple[tuple[str, Callable[[calibration.Sureness], float | None], Callable[[float], str]], ...] = (
        ("calibration error", lambda each: each.ece, percent),
        ("its noise", lambda each: each.noise, percent),
        ("entropy, nats", lambda each: each.entropy_nats, nats),
        ("KL from the teacher", lambda each: each.kl_nats, nats),
        ("reverse KL", lambda each: each.reverse_kl_nats, nats),
    )
    used = [column for column in columns if any(column[1](each) is not None for each in found)]
    rows = []
    for each in found:
        values = [(value(each), shown) for _, value, shown in used]
        cells = [None if value is None else shown(value) for value, shown in values]
        rows.append({"label": each.label, "colour": colour[each.label], "cells": cells})
    entropies = [each.teacher_entropy_nats for each in found if each.teacher_entropy_nats is not None]
    return {
        "chart": calibration.reliability_chart(groups, colour),
        "words": calibration.calibration_words(found),
        "columns": [name for name, _, _ in used],
        "rows": rows,
        "note": f"The teacher’s entropy is {nats(entropies[0])}." if entropies else "",
    }


def loss_sections(groups: Sequence[Group], found: Sequence[Gain], colour: Mapping[str, str]) -> dict[str, Any]:
    """The small figures of the loss in parts."""
    charts = breakdowns.breakdown_charts(groups, found, colour)
    changes = any(chart.zero is not None for chart in charts)
    taught = any(curve.dash for chart in charts for curve in chart.curves)
    said = f"Parts of fewer than {breakdowns.LEAST_LABELS} labels are left out."
    said = f"Below the zero line the teacher helps. {said}" if changes else said
    return {
        "breakdowns": charts,
        "breakdowns_paired": changes,
        "breakdowns_note": said,
        "legend": _legend(groups, colour, taught=taught),
    }


def copying_section(groups: Sequence[Group], colour: Mapping[str, str]) -> dict[str, Any] | None:
    """The probe's figure and its words."""
    chart: Chart | None = breakdowns.copying_chart(groups, colour)
    return None if chart is None else {"chart": chart, "words": breakdowns.copying_words(groups)}


def corpora_section(groups: Sequence[Group], colour: Mapping[str, str]) -> dict[str, Any] | None:
    """Held-out loss corpus by corpus, means over seeds; None where no run was measured on two."""
    records = [record for group in groups for record in group.records]
    names = list(dict.fromkeys(name for record in records for name in record.measures.corpora))
    if len(names) < 2:
        return None
    rows = []
    for group in groups:
        cells = []
        for name in names:
            found = [r.measures.corpora[name].loss_nats for r in group.records if name in r.measures.corpora]
            losses = [loss for loss in found if loss is not None]
            cells.append(nats(fmean(losses)) if losses and len(losses) == len(found) else None)
        if any(cells):
            rows.append({"label": group.label, "colour": colour[group.label], "cells": cells})
    return {"columns": names, "rows": rows}


def footprint_section(found: Footprint, number: int) -> dict[str, Any]:
    """Figures, table, a sentence, and how it was measured."""
    columns = footprint.footprint_columns(found)
    threads = f", {found.threads} thread{'s' if found.threads > 1 else ''}" if found.threads else ""
    device = found.machine.get("device")
    where = f" on {device}{threads}" if device else ""
    times = f", medians of {found.rounds} rounds" if found.rounds else ""
    corpus = f" Held-out bits a byte on {found.corpus}." if found.corpus else ""
    return {
        "number": number,
        "words": footprint.footprint_words(found),
        "charts": footprint.cost_charts(found, number),
        "columns": [name for name, _ in columns],
        "rows": [
            {
                "name": model.name,
                "about": "the teacher" if model.name == found.teacher else _KINDS.get(model.kind, ""),
                "colour": footprint.colour_of(model),
                "cells": [cells[i] for _, cells in columns],
            }
            for i, model in enumerate(found.models)
        ],
        "note": f"Measured{where}: {found.prompt_tokens:,} tokens of prompt, {found.new_tokens:,} written{times}."
        + corpus,
        "command": found.command.split(" ") if found.command else None,
    }


def _legend(groups: Sequence[Group], colour: Mapping[str, str], *, taught: bool) -> Markup:
    """The recipes that have a colour, in theirs, and perhaps the teacher."""
    named = [group for group in groups if colour[group.label] != "other"]
    entries = [f'<span class="kind {colour[group.label]}">{escape(group.label)}</span>' for group in named]
    entries += ['<span class="dashes">the teacher</span>'] if taught else []
    return Markup(f'<p class="legend">{" ".join(entries)}</p>')
