"""Later sections of an evaluation.json, and a footprint.json, in the shape that `evaluate` and `footprint` write."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

PAPER8 = ("hellaswag", "winogrande", "piqa", "mmlu", "kbqa", "c3", "ceval", "gsm8k")
WIDE13 = (*PAPER8, "arc_easy", "boolq", "openbookqa", "lambada", "blimp")
_CHANCE = {
    "hellaswag": 0.26,
    "winogrande": 0.5,
    "piqa": 0.55,
    "boolq": 0.55,
    "blimp": 0.6,
    "gsm8k": 0.0,
    "lambada": 0.02,
}
_NOTES = {
    "kbqa": ["WebQuestions stands in for the paper's KBQA, whose data are not published."],
    "mmlu": ["The first rows of each subject make up for examples that are not there, and are not scored."],
}


def held_out_parts(loss: float, *, seed: int, distilled: bool) -> dict[str, Any]:
    """What stands in `heldout` beside the loss: bins of equal mass, and the loss in parts, lower where distilled."""
    random = np.random.default_rng([seed, int(distilled)])
    confidence = [0.02 * 1.29**i for i in range(15)]
    off = -0.02 if distilled else 0.01
    reliability = [
        {"confidence": c, "accuracy": max(0.0, c + off * c / 0.3 + 0.004 * random.standard_normal()), "count": 4369}
        for c in confidence
    ]
    return {
        "corpus": "nano",
        "ece_noise": 0.004,
        "entropy_nats": 4.61 - 0.1 * distilled,
        "reliability": reliability,
        "by_position": [
            _part(low, max(1, 2 * low), 256 * max(1, low), loss + 2.2 / (1 + low) - 0.01 * math.log1p(low))
            for low in (0, 1, 2, 4, 8, 16, 32, 64, 128)
        ],
        "by_frequency": [
            _part(0 if i < 0 else 10**i, 10 ** (i + 1), 900 * (i + 2), loss + 4.6 - 1.5 * i - 0.05 * distilled * i)
            for i in range(-1, 5)
        ],
        "by_teacher_entropy": [
            _part(0.2 + 0.75 * i, 0.9 + 0.75 * i, 6553, loss - 3.6 + 0.7 * i - 0.02 * distilled * i) for i in range(10)
        ],
        "teacher": {
            "name": "nano-l", "kl_nats": 1.2 - 0.3 * distilled, "agreement": 0.45, "loss_nats": 4.53,
            "reverse_kl_nats": 1.3 - 0.3 * distilled, "entropy_nats": 4.2, "entropy_gap_nats": 0.41, "ece": 0.007,
        },
    }  # fmt: skip


def copying(most: float) -> dict[str, Any]:
    """A probe at five lengths, the shorter the easier."""
    lengths = [
        {
            "length": 8 << i, "sequences": 64, "first_loss_nats": 8.1, "loss_nats": 7.9 + 0.05 * i,
            "accuracy": most / (i + 1),
        }
        for i in range(5)
    ]  # fmt: skip
    return {"vocab_size": 2048, "chance_nats": math.log(2048), "lengths": lengths}


def tasks(directory: str, *, seed: int = 0, gain: float = 0.0, n: int = 100) -> dict[str, Any]:
    """Thirteen tasks of `n` rows each, in two suites; the larger the gain, the more rows are right."""
    results = {}
    for number, name in enumerate(WIDE13):
        luck = np.random.default_rng([number]).random(n) + 0.02 * np.random.default_rng([number, seed, 9]).random(n)
        results[name] = task_result(name, luck < _CHANCE.get(name, 0.27) + 0.1 * gain, directory=directory)
    return {"results": results, "suites": {suite: made_suite(results, suite) for suite in ("paper8", "wide13")}}


def made_suite(results: dict[str, Any], suite: str) -> dict[str, Any]:
    """Mean and standard error of a suite's tasks."""
    members = list(PAPER8 if suite == "paper8" else WIDE13)
    found = [results[name]["metrics"][results[name]["headline"]] for name in members]
    return {
        "tasks": members,
        "mean": sum(metric["value"] for metric in found) / len(members),
        "stderr": math.sqrt(sum(metric["stderr"] ** 2 for metric in found)) / len(members),
        "baseline": None,
    }


def task_result(name: str, right: Any, *, directory: str = "runs/x", rows: str = "5eed") -> dict[str, Any]:
    """The record of one task, from what was right row by row."""
    n, value = len(right), float(np.mean(right))
    headline = "acc_norm" if name in ("hellaswag", "piqa") else "exact_match" if name == "gsm8k" else "acc"
    metrics = {headline: {"value": value, "stderr": float(np.std(right, ddof=1) / math.sqrt(n)) if n > 1 else 0.0}}
    if name == "lambada":
        metrics["perplexity"] = {"value": 1234.5, "stderr": 81.0}
    if name == "gsm8k":
        example = {
            "prompt": "Question: A farmer has 16 eggs and eats three. How many are left?\nAnswer:", "answer": "#### 13",
            "written": "The farmer has the eggs of the farmer of the eggs.",
        }  # fmt: skip
    else:
        choices = [" and the river was wide.", " 他走了。", " or so he said to the king of the seven hills", " no"]
        example = {
            "prompt": f"The old man of {name} went down to the water", "answer": 2,
            "choices": choices, "scores": [-31.25 - value, -48.5, -64.0, -9.75],
        }  # fmt: skip
    return {
        "version": 1.0, "shots": {"mmlu": 6, "ceval": 6, "gsm8k": 8}.get(name, 0), "n": n, "of": 10042,
        "limit": n, "headline": headline, "metrics": metrics, "correct": "".join(str(int(each)) for each in right),
        "rows": rows, "cut": 94 if name == "mmlu" else 0, "context": 256,
        "files": [{"name": f"{name}.jsonl.zst", "sha256": "ab" * 32}], "notes": _NOTES.get(name, []),
        "command": f"predistill evaluate {directory} --tasks wide13 --limit {n}", "lm_eval": "0.4.13",
        "opens_with": "<|endoftext|>", "example": example,
    }  # fmt: skip


def made_footprint(path: Path, **changes: Any) -> Path:
    """A footprint.json of three plain students, three distilled ones and their teacher."""
    models = [
        _model("nano-l", "model", 2_164_416, 1.36, draft=None),
        *(
            _model(f"lm-{s}", "LM", p, b)
            for s, p, b in (("xs", 90_000, 1.86), ("s", 230_000, 1.71), ("m", 860_000, 1.55))
        ),
        *(
            _model(f"pd-{s}", "PD", p, b)
            for s, p, b in (("xs", 90_000, 1.82), ("s", 230_000, 1.56), ("m", 860_000, 1.47))
        ),
    ]
    content = {
        "command": "predistill footprint runs/lm-s runs/pd-s --teacher models/nano-l --corpus corpora/nano",
        "machine": {"system": "Linux", "cores": 2, "threads": 1, "device": "cpu (x86_64)"},
        "versions": {"torch": "2.13.0"}, "threads": 1, "prompt_tokens": 128, "new_tokens": 64, "rounds": 5,
        "corpus": "nano", "teacher": "nano-l", "models": models,
    } | changes  # fmt: skip
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _part(low: float, high: float, tokens: int, loss: float) -> dict[str, Any]:
    return {
        "from": low, "to": high, "tokens": tokens, "loss_nats": loss, "teacher_loss_nats": loss - 0.9, "kl_nats": 1.0
    }  # fmt: skip


def _model(name: str, kind: str, parameters: int, bits: float, draft: float | None = 0.3) -> dict[str, Any]:
    speed = 4e5 / parameters**0.55
    acceptance = {
        "rate": draft, "proposed": 900, "accepted": 270, "tokens_per_round": 2.1,
        "teacher_tokens_per_second": 150.0, "assisted_tokens_per_second": 171.0,
    }  # fmt: skip
    return {
        "name": name, "path": f"runs/{name}", "kind": kind, "parameters": parameters, "bytes_on_disk": 4 * parameters,
        "dtype": "fp32", "loss_nats": 3.1 * bits, "bits_per_byte": bits, "time_to_first_token_seconds": 2 / speed,
        "batches": {
            str(batch): {"prefill_tokens_per_second": 30 * speed, "decode_tokens_per_second": speed * batch**0.7}
            for batch in (1, 8)
        },
        "peak_memory_bytes": 14 * parameters + 4_000_000, "acceptance": None if draft is None else acceptance,
    }  # fmt: skip
