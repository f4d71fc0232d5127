"""The model card of an exported student, written from the run's own records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

__all__ = ["model_card"]


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
    if evaluation is not None:
        heldout = evaluation["heldout"]
        bits = heldout["bits_per_byte"]
        in_bytes = "" if bits is None else f"{bits:.4f} bits a byte, "
        measured = (
            f"Held-out text: {heldout['loss_nats']:.4f} nats a token, {in_bytes}"
            f"calibration error {heldout['ece']:.4f} over {heldout['tokens']:,} tokens."
        )
        lines += [measured, ""]
    lines += ["```yaml", yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True).strip(), "```", ""]
    return "\n".join(lines)
