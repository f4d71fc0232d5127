"""The model card of an exported student, written from the run's own records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

__all__ = ["made_here", "model_card"]


def model_card(
    recipe: Mapping[str, Any], environment: Mapping[str, Any], evaluation: Mapping[str, Any] | None = None
) -> str:
    """Markdown: what the student is, what it learned from, how it was measured, and the recipe that makes it again."""
    taught = recipe["teacher"]["kind"] != "none"
    inputs = environment["inputs"]
    facts = [store["manifest"]["teacher"] for store in inputs["store"]] + [
        inputs[k] for k in ("teacher",) if k in inputs
    ]
    teachers = ", ".join(dict.fromkeys(teacher["name"] for teacher in facts))
    how = f"by distillation from the next-token distributions of {teachers}" if taught else "on the text alone"
    tags = "predistill, pre-training-distillation" if taught else "predistill"
    made = (
        f"A base language model of {environment['parameters']:,} parameters, pre-trained from scratch {how} with "
        f"predistill {environment['versions']['predistill']}: "
        f"{environment['tokens']:,} tokens, {environment['steps']:,} steps."
    )
    lines = ["---", "library_name: transformers", f"tags: [{tags}]", "---", f"# {recipe['name']}", "", made, ""]
    if evaluation is not None and "heldout" in evaluation:  # a run may have been measured on tasks alone
        heldout = evaluation["heldout"]
        bits = heldout["bits_per_byte"]
        where = f" of {heldout['corpus']}" if "corpus" in heldout else ""
        in_bytes = "" if bits is None else f"{bits:.4f} bits a byte, "
        measured = (
            f"Held-out text{where}: {heldout['loss_nats']:.4f} nats a token, {in_bytes}"
            f"calibration error {heldout['ece']:.4f} over {heldout['tokens']:,} tokens."
        )
        lines += [measured, ""]
    for words, suite in ((evaluation or {}).get("tasks") or {}).get("suites", {}).items():
        rows = "" if suite["limit"] is None else f", {suite['limit']:,} rows of each"
        lines += [
            f"Tasks ({words}{rows}): {suite['mean']:.1%} right on average, standard error {suite['stderr']:.1%}.",
            "",
        ]
    lines += ["```yaml", yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True).strip(), "```", ""]
    return "\n".join(lines)


def made_here(model: Path) -> bool:
    """Whether the card of a model directory says that predistill made it: then every document that it was trained on
    was opened by the end token."""
    card = model / "README.md"
    head = card.read_text(encoding="utf-8", errors="replace").split("---")[1:2] if card.is_file() else []
    try:
        facts = yaml.safe_load(head[0]) if head else None
    except yaml.YAMLError:
        return False
    return isinstance(facts, dict) and "predistill" in (facts.get("tags") or ())
