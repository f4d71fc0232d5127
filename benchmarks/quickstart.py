"""The quickstart as a stranger runs it: wall time, and what the teacher gains with the shipped seed and four more.

    python benchmarks/quickstart.py [OUT]

Seed 0 is timed whole, as one process from `predistill quickstart`; the other seeds share its corpus and store.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import write_record

SEEDS = (0, 1, 2, 3, 4)


def main() -> None:
    """Run every seed and keep the record."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()) / "quickstart"
    rows = []
    for seed in SEEDS:
        started = time.perf_counter()
        command = [sys.executable, "-c", "from predistill.cli import main; main()", "quickstart", "--json"]
        command += ["--out", str(out), "--seed", str(seed)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result = json.loads(done.stdout)
        row = {"seed": seed, **{name: result[name] for name in ("lm_loss_nats", "pd_loss_nats", "gain_nats")}}
        if seed == SEEDS[0]:
            row |= {"seconds": round(time.perf_counter() - started, 1)}
            row |= {name: result[name] for name in ("cpu_ratio", "store_bytes_per_token")}
        print(row, flush=True)
        rows.append(row)
    write_record("quickstart", {"runs": rows})


if __name__ == "__main__":
    main()
