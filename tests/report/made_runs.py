"""Run directories in the shape that `predistill train` and `evaluate` leave, with curves made from a formula."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .made_measures import copying, held_out_parts, tasks

STORE = {
    "path": "stores/nano-top95-100",
    "totals": {"rows": 4096, "positions": 1_048_576, "entries": 24_100_000, "bytes": 51_600_000},
    "bytes_by_stream": {
        "ids": 34_100_000,
        "logprobs": 11_800_000,
        "rest": 2_050_000,
        "label": 1_900_000,
        "entropy": 900_000,
        "lengths": 610_000,
        "std": 0,
        "overhead": 240_000,
    },
    "manifest": {"teacher": {"name": "nano-l"}, "truncation": {"kind": "top_p_k", "p": 0.95, "k": 100}},
}
TEACHER_NATS = 4.53
SAMPLE = (
    "The old man walked down to the river, where the boats of the morning lay still. He said nothing for a long time."
)


def made_run(
    path: Path,
    *,
    name: str = "lm",
    seed: int = 0,
    teacher: bool = False,
    gain: float = 0.0,
    steps: int = 200,
    ended: float = 1.0,
    evaluated: bool = True,
    fingerprint: str = "c0ffee" * 10,
    heldout_tokens: int = 65_536,
    recipe: dict[str, Any] | None = None,
    corpora: tuple[str, ...] = (),
    found: Mapping[float, str] | None = None,
    measures: bool = False,
) -> Path:
    """Write one run: `gain` nats below the LM curve in the end, `ended` the share of its steps that were taken.

    `corpora`: whose held-out text was measured in training; none: as runs were before there could be several. `found`:
    share of the steps -> the kind of what the watch found there. `measures`: with the tasks, bins and parts that runs
    had not before.
    """
    path.mkdir(parents=True)
    noise = np.random.default_rng([seed, int(teacher), round(1000 * gain) % 997])
    batch_tokens = 4096
    settings = _recipe(name, seed=seed, teacher=teacher, tokens=steps * batch_tokens) | (recipe or {})
    (path / "recipe.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    directory = path.as_posix()
    environment = {
        "command": f"predistill train recipes/nano/{name}.yaml seed={seed} --out {directory}",
        "inputs": {
            "corpus": [{"path": "corpora/nano", "fingerprint": fingerprint, "rows": 4096}],
            "store": [STORE] if teacher else [],
        },
        "versions": {"python": "3.11.9", "predistill": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"},
        "machine": {"system": "Linux", "machine": "x86_64", "cores": 2, "threads": 2, "device": "cpu (x86_64)"},
        "parameters": 230_000,
        "non_embedding_parameters": 99_000,
        "steps": steps,
        "batch_tokens": batch_tokens,
    }
    (path / "environment.json").write_text(json.dumps(environment), encoding="utf-8")

    seconds_each = 0.31 if teacher else 0.27
    floor = 5.49 + 0.02 * noise.standard_normal()
    lines: list[dict[str, Any]] = []
    taken = round(ended * steps)
    for step in range(1, taken + 1):
        at = step / steps
        helped = gain * min(1.0, 1.6 * at)
        loss = floor + 2.1 * math.exp(-28 * at) + 0.75 * (1 - at) ** 1.7 - helped
        alpha = (0.9 * min(1, at / 0.1, (1 - at) / 0.1 + 1e-9)) if teacher else 0.0
        lm = loss + 0.06 * noise.standard_normal()
        kl = 0.3 + 2.0 * math.exp(-4 * at)
        lines.append(
            {
                "kind": "step", "step": step, "tokens": step * batch_tokens, "loss": lm, "lm": lm,
                "kd": 3.1 + kl if teacher else None, "kl": kl if teacher else None, "alpha": alpha,
                "lr": 4e-3 * min(1, at / 0.05) * (1 if at < 0.7 else 0.1 + 0.9 * (1 - at) / 0.3),
                "grad_norm": 1.0, "seconds": round(seconds_each * step, 3), "tokens_per_s": batch_tokens / seconds_each,
            }
        )  # fmt: skip
        if step % max(1, steps // 20) == 0:
            measured = loss + 0.003 * noise.standard_normal()
            heldout = {"kind": "heldout", "step": step, "tokens": step * batch_tokens, "loss_nats": measured}
            lines += [
                heldout | {"loss_nats": measured + 0.4 * i, "ece": 0.01, "corpus": corpus}
                for i, corpus in enumerate(corpora)
            ] or [heldout]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if found:
        findings = [_finding(round(share * steps), kind) for share, kind in found.items()]
        text = "".join(json.dumps(finding) + "\n" for finding in findings)
        (path / "findings.jsonl").write_text(text, encoding="utf-8")
    if ended < 1:
        return path
    done = {
        "seconds": seconds_each * steps,
        "cpu_seconds": (0.6 if teacher else 0.5) * steps,
        "tokens": steps * batch_tokens,
        "flops": 6e5 * steps * batch_tokens,
        "model": "model",
    }
    (path / "DONE").write_text(json.dumps(done), encoding="utf-8")
    if not evaluated:
        return path
    loss = floor - gain
    evaluation = {
        "command": f"predistill evaluate {directory} --tasks heldout --teacher models/nano-l",
        "heldout": {
            "rows": heldout_tokens // 256,
            "tokens": heldout_tokens,
            "loss_nats": loss,
            "bits_per_byte": loss / math.log(2) / 3.1,
            "ece": 0.012 + (0.016 if teacher else 0),
            "accuracy": 0.24,
            "teacher": {
                "name": "nano-l",
                "kl_nats": 1.21 - 1.4 * gain,
                "agreement": 0.412 + 0.3 * gain,
                "loss_nats": TEACHER_NATS,
            },
        },
        "samples": [
            {"prompt": "", "text": SAMPLE + f" In year {seed + 2} they built a wall, and the wall was high."},
            {"prompt": "The ", "text": "city of stone was the last that he had seen.\n\nIt was night."},
            {"prompt": "人", "text": "们在河边走着，没有人说话，天已经黑了。他想起了那座城市。"},
        ],
    }
    if measures:
        evaluation["heldout"] |= held_out_parts(loss, seed=seed, distilled=teacher)
        evaluation["copying"] = copying(0.08 if teacher else 0.1)
        evaluation["tasks"] = tasks(directory, seed=seed, gain=gain)
    (path / "evaluation.json").write_text(json.dumps(evaluation, ensure_ascii=False), encoding="utf-8")
    return path


def _finding(step: int, kind: str) -> dict[str, Any]:
    return {
        "kind": kind, "step": step, "since": step, "severe": kind == "divergence", "value": 6.5, "limit": 6.0,
        "sentence": f"step {step:,}: the LM loss is 6.50 and was 5.90 before it. Lower lr.peak, or set optimizer.clip.",
        "action": "stop" if kind == "divergence" else "warn",
    }  # fmt: skip


def _recipe(name: str, *, seed: int, teacher: bool, tokens: int) -> dict[str, Any]:
    return {
        "name": name,
        "seed": seed,
        "corpus": [{"path": "corpora/nano", "weight": 1.0, "store": STORE["path"] if teacher else None}],
        "student": {"preset": "nano-s", "from": None},
        "teacher": {"kind": "stored" if teacher else "none"},
        "truncation": {"kind": "top_p_k", "p": 0.95, "k": 50},
        "temperature": {"kind": "static", "value": 2.0, "sides": "teacher"},
        "tail": {"kind": "renormalise"},
        "loss": {"kind": "kld"},
        "positions": {"kind": "all"},
        "alpha": {"kind": "wsd", "peak": 0.9, "warmup_frac": 0.1, "decay_frac": 0.1, "floor": 0.0, "inverse": False},
        "lr": {"kind": "wsd", "peak": 0.004, "warmup_frac": 0.05, "decay_frac": 0.3, "floor": 0.1, "inverse": False},
        "optimizer": {"betas": [0.9, 0.95], "weight_decay": 0.1, "clip": 1.0},
        "tokens": tokens,
        "batch_tokens": 4096,
        "micro_batch_rows": 16,
        "precision": "fp32",
        "evaluate_every": 0.05,
        "checkpoint_every": 0.1,
        "keep": 2,
    }
