"""Put a finished nano-teacher run into the package: weights in bfloat16 (they run in float32), tokenizer, config, card.

python studies/nano-teacher/embed.py runs/nano-teacher
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from predistill.assets import teacher_path
from predistill.students.build import load_model
from predistill.students.export import export_student

RECORDS = ("recipe.yaml", "environment.json", "metrics.jsonl", "evaluation.json", "DONE")


def main() -> None:
    run = Path(sys.argv[1])
    model = load_model(run / "model", device=torch.device("cpu"), dtype=torch.bfloat16)
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    export_student(model, out=teacher_path(), tokenizer=run / "model", card=card)
    records = Path(__file__).parent / "records"
    records.mkdir(exist_ok=True)
    for name in RECORDS:
        shutil.copyfile(run / name, records / name)


if __name__ == "__main__":
    main()
