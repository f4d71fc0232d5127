"""What every benchmark's record says of the machine, and where records lie. Not a benchmark itself."""

from __future__ import annotations

import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from predistill.files import write_atomic

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Cores, architecture, versions; no names of hosts or paths."""
    packages = ("predistill", "torch", "transformers", "tokenizers", "numpy", "pcodec")
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    """None for what is not here: a GPU may be lent with little more than torch."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_record(name: str, content: dict[str, Any]) -> None:
    """Write benchmarks/results/NAME.json, and print it."""
    made = {"command": f"python benchmarks/{name}.py", "date": time.strftime("%Y-%m-%d"), "machine": machine()}
    record = {**made, **content}
    RESULTS.mkdir(exist_ok=True)
    write_atomic(RESULTS / f"{name}.json", (json.dumps(record, indent=2) + "\n").encode())
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    print(json.dumps(machine(), indent=2))
