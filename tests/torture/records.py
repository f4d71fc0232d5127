"""benchmarks/results/torture.json: one entry a kind of torture, the last run of each."""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

SEED = int(os.environ.get("PREDISTILL_TORTURE_SEED", secrets.randbelow(1 << 32)))
RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "torture.json"


def record(what: str, entry: dict[str, Any]) -> None:
    """Put one part of the record beside the others."""
    found = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    found |= {what: {"seed": SEED, "date": time.strftime("%Y-%m-%d"), **entry}}
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
