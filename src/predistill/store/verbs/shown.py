"""The contents of a store as a page of text, 80 columns wide."""

from __future__ import annotations

from typing import Any

__all__ = ["shown"]

WIDTH, BAR = 80, 28


def shown(facts: dict[str, Any]) -> str:
    """What `contents` found, for people."""
    blocks = [_title(facts), _made_from(facts["made_from"])]
    if facts["complete"]:
        blocks += [_streams(facts), _distributions(facts)]
    else:
        blocks.append(_writers(facts["writers"]))
    blocks.append(_cost(facts["cost"]))
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _title(facts: dict[str, Any]) -> list[str]:
    lines = [f"{facts['store']}  {facts['store_id'][:16]}"]
    rows = f"{facts['rows_there']:,} rows"
    if not facts["complete"]:
        return [*lines, f"in the making: {rows} are whole, {_size(facts['bytes'])}"]
    if facts["rows_there"] < facts["rows"]:
        rows = f"{facts['rows_there']:,} of {facts['rows']:,} rows"
    if facts["rows_twice"]:
        rows += f" ({facts['rows_twice']:,} lie there twice)"
    lines.append(f"{rows} of {facts['row_len']:,} tokens, {_size(facts['bytes'])}: {_bytes(facts)} bytes a token")
    lines.append(f"{_count(facts['shards'], 'shard')}, {_count(facts['writers'], 'writer')}")
    return lines


def _bytes(facts: dict[str, Any]) -> str:
    return f"{facts['bytes_per_position']:.1f}"


def _made_from(made: dict[str, Any]) -> list[str]:
    found: list[tuple[str, str]] = []
    if teacher := made.get("teacher"):
        engine = teacher.get("engine") or {}
        by = f"{engine['name']} {engine.get('version', '')}".strip() if engine.get("name") else ""
        shas = teacher.get("sha256") or []
        sha = (shas[0][:12] + (f" and {len(shas) - 1} more" if len(shas) > 1 else "")) if shas else ""
        found.append(("teacher", _joined(teacher.get("name"), teacher.get("dtype"), sha, by)))
    if tokenizer := made.get("tokenizer"):
        found.append(("tokenizer", _joined(f"{tokenizer['vocab_size']:,} words", tokenizer["sha256"][:12])))
    if corpus := made.get("corpus"):
        mask = "attention within documents" if corpus.get("document_mask") else None
        found.append(("corpus", _joined(corpus.get("split"), corpus.get("fingerprint"), mask)))
    if kept := made.get("truncation"):
        found.append(("kept", _kept(kept)))
    if drawn := made.get("sampling"):
        tau = drawn.get("proposal_temperature", 1.0)
        at = None if tau == 1 else f"at temperature {tau:g}"
        found.append(("kept", _joined(f"{drawn['draws']:,} random draws", at)))
    if "selected_from" in made:
        found.append(("a part of", made["selected_from"][:16]))
    for origin in made.get("merged_from", ()):
        found.append(("merged from", f"{origin['store_id'][:16]}, {origin['rows']:,} rows"))
    return ["made from", *_pairs(found)]


def _kept(kept: dict[str, Any]) -> str:
    p = f"the likeliest words up to a mass of {kept['p']:g}" if kept.get("p", 1) < 1 else "the likeliest words"
    return p if kept.get("k") is None else f"{p}, at most {kept['k']:,}"


def _streams(facts: dict[str, Any]) -> list[str]:
    lines = [f"{'where the bytes go':<20}{'bytes':>16}{'a token':>9}{'an entry':>10}{'share':>8}"]
    most = max(stream["share"] for stream in facts["streams"].values())
    for name, stream in sorted(facts["streams"].items(), key=lambda item: -item[1]["bytes"]):
        if not stream["bytes"]:
            continue
        bar = _bar(stream["share"] / max(most, 1e-9), 14)
        numbers = f"{stream['bytes']:>16,}{stream['per_position']:>9.2f}{stream['per_entry']:>10.3f}"
        lines.append(f"  {name:<18}{numbers}{100 * stream['share']:>6.1f} %  {bar}".rstrip())
    return lines


def _distributions(facts: dict[str, Any]) -> list[str]:
    sample, test = facts["sample"], facts["self_test"]
    lines = [f"the distributions, over {_count(sample['sample_rows'], 'row')}"]
    names = (
        ("mean_entries", "entries a position", "{:.1f}"),
        ("mean_kept_mass", "mass that is kept", "{:.4f}"),
        ("mean_entropy_nats", "entropy", "{:.3f} nats"),
        ("teacher_loss_nats", "the teacher's loss", "{:.3f} nats"),
    )
    found = [(label, form.format(sample[name])) for name, label, form in names if name in sample]
    if isinstance(kl := test.get("kl_online_to_stored_nats"), int | float):
        found.append(("lost by storing", f"{kl:.1e} nats of {test.get('kl_rows', 0)} rows, at capture"))
    lines += _pairs(found)
    if histogram := sample["histogram"]:
        most = max(line["share"] for line in histogram)
        spans = [f"{b['from']:,}" if b["from"] == b["to"] else f"{b['from']:,} to {b['to']:,}" for b in histogram]
        lines += ["", f"{'entries':>20}  share of the positions"]
        for span, line in zip(spans, histogram, strict=True):
            lines.append(f"{span:>20}{100 * line['share']:>6.1f} %  {_bar(line['share'] / most, BAR)}".rstrip())
    return lines


def _writers(writers: list[dict[str, Any]]) -> list[str]:
    lines = [f"{'writers':<10}{'rows':>12}{'':>13}"]
    for writer in writers:
        heard = "" if writer["heard"] is None else f", heard {writer['heard']:,.0f} s ago"
        line = f"  {writer['number']:<8}{writer['rows']:>12,}{_size(writer['bytes']):>12}  {writer['state']}{heard}"
        lines.append(line)
    return [lines[0].rstrip(), *lines[1:]]


def _cost(cost: dict[str, float]) -> list[str]:
    if not cost.get("tokens"):
        return []
    rate = cost["tokens"] / max(cost.get("seconds", 0.0), 1e-9)
    found = [("tokens", f"{cost['tokens']:,.0f}"), ("time", f"{_time(cost.get('seconds', 0.0))}, {rate:,.0f} tokens/s")]
    if "cpu_seconds" in cost:
        found.append(("processor", _time(cost["cpu_seconds"])))
    return ["what its capture took, all workers together", *_pairs(found)]


def _pairs(found: list[tuple[str, str]]) -> list[str]:
    return [f"  {label:<18}  {text}" for label, text in found]


def _joined(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)


def _bar(share: float, width: int) -> str:
    """Eighths of a block: one that is not 0 shows."""
    eighths = round(share * width * 8) or int(share > 0)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
