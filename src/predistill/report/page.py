"""Run records -> one self-contained HTML page: no script, no outside resource, the same bytes for the same records."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from predistill.report import figures, sections
from predistill.report.calibration import surenesses
from predistill.report.footprint import Footprint
from predistill.report.gains import Gain, gains
from predistill.report.geometry import shortened
from predistill.report.headline import Headline, headline
from predistill.report.numbers import count, duration, nats, percent, signed
from predistill.report.records import Record, StoreUse
from predistill.report.standing import findings, standings
from predistill.report.table import Group, Row, group_records, table_rows
from predistill.report.tasks import Tasks, task_scores

__all__ = ["report_page"]

COLUMNS = (
    "seed",
    "held-out nats a token",
    "less baseline",
    "bits a byte",
    "KL to teacher",
    "agreement",
    "calibration error",
    "tokens",
    "training time",
    "cost ratio",
)


def report_page(records: Sequence[Record], footprints: Sequence[Footprint] = ()) -> str:
    """The page. `records` are of different directories, one at least; `footprints` tell what models cost to use."""
    groups = group_records(records)
    found = gains(groups, records)
    colour = figures.colours(groups, found)
    rows = table_rows(records)
    ordered = [record for group in groups for record in group.records]
    stores = list({store.path: store for record in ordered for store in record.stores}.values())
    said = headline(found, records)
    told = [[row.run for row in rows], [colour[row.recipe] for row in rows]]
    standing, found_wrong = standings(ordered, *told), findings(ordered, *told)
    charts = [
        figures.loss_chart(groups, colour, [(f.record, f.finding, f.id) for f in found_wrong]),
        figures.difference_chart(found, colour),
        figures.gain_strip(found, colour),
        figures.schedule_chart(
            [g for g in groups if g.distilled],
            colour,
            key="alpha",
            title="Weight of the teacher",
            unit="alpha: 0 is no teacher, 1 the teacher alone",
            top=1.0,
        ),
        figures.schedule_chart(groups, colour, key="lr", title="Learning rate", unit="lr"),
        *figures.other_corpora_charts(groups, colour),
    ]
    strips = [figures.store_strip(store, number) for number, store in enumerate(stores, 1)]
    tasks = task_scores(groups, found)
    page = _environment().get_template("page.html.j2")
    return page.render(
        headline=said,
        standing=standing,
        findings=found_wrong,
        charts=[chart for chart in charts if chart is not None],
        difference=charts[1] is not None,
        columns=COLUMNS,
        grouped=len(groups) < len(records) or any(" " in group.label for group in groups),
        rows=_rows(rows, colour),
        table_note=_table_note(ordered),
        tasks=sections.tasks_section(tasks, found, colour),
        corpora=sections.corpora_section(groups, colour),
        calibration=sections.calibration_section(groups, colour),
        **sections.loss_sections(groups, found, colour),
        copying=sections.copying_section(groups, colour),
        footprints=[sections.footprint_section(each, number) for number, each in enumerate(footprints, 1)],
        stores=[strip for strip in strips if strip is not None],
        samples=_samples(ordered, rows, colour),
        commands=_commands(ordered, rows, colour),
        provenance=_provenance(ordered),
        data=Markup(_embedded(_data(said, rows, found, stores, ordered) | _measured(tasks, groups, footprints))),
    )


def _rows(rows: Sequence[Row], colour: Mapping[str, str]) -> list[dict[str, Any]]:
    """The table's rows as text; the first of each recipe is marked."""
    shown = []
    for i, row in enumerate(rows):
        cells = (
            str(row.seed),
            _maybe(row.loss_nats, nats) if row.state == "finished" else _state(row),
            _maybe(row.difference_nats, signed),
            _maybe(row.bits_per_byte, nats),
            _maybe(row.kl_nats, nats),
            _maybe(row.agreement, percent),
            _maybe(row.ece, percent),
            count(row.tokens),
            _maybe(row.train_seconds, duration),
            _maybe(row.cost_ratio, lambda ratio: f"{ratio:.2f}"),
        )
        first = i == 0 or rows[i - 1].recipe != row.recipe
        shown.append(
            {
                "run": row.run,
                "recipe": row.recipe,
                "kind": row.kind,
                "colour": colour[row.recipe],
                "cells": cells,
                "first": first,
                "finished": row.state == "finished",
            }
        )
    return shown


def _maybe(value: float | None, shown: Callable[[float], str]) -> str | None:
    return None if value is None or not math.isfinite(value) else shown(value)


def _state(row: Row) -> str:
    return f"{percent(row.progress, 0)} trained" if row.state == "unfinished" else row.state


def _table_note(records: Sequence[Record]) -> str:
    teachers = sorted({record.teacher for record in records if record.teacher})
    return (
        "LM: trained without a teacher. PD: distilled. Less baseline: held-out loss less that of the LM run of the "
        "same corpus, student, tokens, seed, learning rate and optimizer; below zero is better. KL and agreement (on "
        f"the likeliest token) are against {', '.join(teachers) or 'a teacher'}, at temperature 1 and over the whole "
        "vocabulary. Calibration error: expected, in bins of equal mass. Training time is wall clock, without the "
        "teacher’s pass and without evaluation. Cost ratio: training time over the baseline’s, in processor time where "
        "the student was trained on a CPU."
    )


def _samples(records: Sequence[Record], rows: Sequence[Row], colour: Mapping[str, str]) -> list[list[dict[str, str]]]:
    """Prompt by prompt, what every student wrote; its empty lines, of which young students are fond, are left out."""
    by_prompt: dict[str, list[dict[str, str]]] = {}
    for record, row in zip(records, rows, strict=True):
        for prompt, text in record.samples:
            shown = re.sub(r"\n\s*\n", "\n", text)
            sample = {"run": row.run, "colour": colour[row.recipe], "prompt": prompt, "text": shown}
            by_prompt.setdefault(prompt, []).append(sample)
    return list(by_prompt.values())


def _commands(records: Sequence[Record], rows: Sequence[Row], colour: Mapping[str, str]) -> list[dict[str, Any]]:
    """What was typed for each row, in the order of the work, and the resolved recipe."""
    shown = []
    for record, row in zip(records, rows, strict=True):
        captures = [store.capture.command for store in record.stores if store.capture]
        asked = [result.command for result in record.measures.tasks.values()]
        typed = [*captures, record.train_command, record.evaluate_command, *asked]
        commands = [command.split(" ") for command in dict.fromkeys(typed) if command]
        recipe = yaml.safe_dump(dict(record.recipe), sort_keys=False, allow_unicode=True)
        shown.append({"run": row.run, "colour": colour[row.recipe], "commands": commands, "recipe": recipe})
    return shown


def _provenance(records: Sequence[Record]) -> list[str]:
    """Corpora, live teachers, machines and versions, each distinct one once."""
    corpora = {fingerprint[:16]: None for record in records for fingerprint in record.corpora}
    lines = [f"Corpus {', '.join(corpora)}."] if corpora else []
    live = sorted({record.live_teacher for record in records if record.live_teacher is not None})
    lines += [f"Teacher beside the student: {', '.join(live)}."] if live else []
    for title, facts in (("Machine", [r.machine for r in records]), ("Made with", [r.versions for r in records])):
        lines += dict.fromkeys(f"{title}: {', '.join(f'{k} {v}' for k, v in fact.items())}." for fact in facts if fact)
    return lines


def _data(
    said: Headline, rows: Sequence[Row], found: Sequence[Gain], stores: Sequence[StoreUse], records: Sequence[Record]
) -> dict[str, Any]:
    """The page's figures for a machine: what the embedded JSON holds."""
    return {
        "headline": asdict(said),
        "rows": [asdict(row) for row in rows],
        "gains": [
            {
                "recipe": gain.group.label,
                "seeds": [pair.distilled.seed for pair in gain.pairs],
                "differences_nats": gain.differences,
                "mean_nats": gain.mean,
                "interval_95_nats": gain.interval,
                "share": gain.share,
            }
            for gain in found
        ],
        "stores": [asdict(store) for store in stores],
        "findings": [
            {"run": row.run, **finding}
            for row, record in zip(rows, records, strict=True)
            for finding in record.findings
        ],
    }


def _measured(tasks: Tasks | None, groups: Sequence[Group], footprints: Sequence[Footprint]) -> dict[str, Any]:
    """The figures of the later sections."""
    scores = (
        [] if tasks is None else [{"task": key[0], "recipe": key[1], **asdict(s)} for key, s in tasks.scores.items()]
    )
    means = (
        [] if tasks is None else [{"suite": key[0], "recipe": key[1], **asdict(s)} for key, s in tasks.means.items()]
    )
    records = [(group.label, record) for group in groups for record in group.records]
    return {
        "tasks": scores,
        "suites": means,
        "calibration": [asdict(each) for each in surenesses(groups)],
        "held_out": [
            {"recipe": label, "run": record.path.name, **asdict(found)}
            for label, record in records
            if (found := record.measures.heldout) is not None
        ],
        "copying": [
            {"recipe": label, "run": record.path.name, **asdict(probe)}
            for label, record in records
            if (probe := record.measures.copying) is not None
        ],
        "footprints": [{**asdict(each), "path": str(each.path)} for each in footprints],
    }


def _embedded(data: Any) -> str:
    """JSON that is valid everywhere (no NaN) and cannot close its script element."""
    return json.dumps(_finite(data), ensure_ascii=False, indent=1).replace("<", "\\u003c")


def _finite(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["shortened"] = shortened
    environment.filters["percent"] = lambda share: percent(share, 0)
    return environment
