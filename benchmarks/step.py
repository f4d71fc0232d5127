"""What a distilled training step costs beside the plain one: time and memory, the reading of its targets included.

    PREDISTILL_GGUF=SmolLM2-135M-Instruct.Q4_1.gguf PYTHONPATH=FOLDER_WITH_TRL python benchmarks/step.py

Writes benchmarks/results/step.json. One process trains all arms, the same student on the same rows: a step is what
`train` does. They take turns, and another begins each round; medians over the rounds of the ratio to LM's step.

  cpu_ratio       CPU seconds of the training process and of the one that reads for it
  stall           the share of its time that a step waits for its batch
  peak_mib        the most resident memory above what imports took, of a process of its own that trains this arm alone;
                  process_mib: with them; reader_mib: all of the process that reads
  of_lm_and_bare  live against LM's step plus the bare teacher: backbone and logits, a row at a time, nothing kept

Arms: lm; a store of top-.95-100; one of top-.95-50 at temperature 2, the paper's best recipe; one of 50 draws; each
once more read by the training process itself (readers 0); live, its targets cut to top-.95-100, and live with all
words. Alpha is .9, the loss KLD. Peers are those of trainers.py. Two students: nano-s on the embedded sample (V 2,048),
taught by the embedded teacher; width 256 and two layers on English encyclopedia text (V 49,152), taught by SmolLM2
135M, left out where $PREDISTILL_GGUF names none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, NamedTuple

import torch
from arms import Arm, peak_apart, recipe_of
from corpora import ROW_LEN, gguf_teacher, nano_corpus, smollm2_corpus
from record import write_record
from trainers import TRAINERS, beside, installed
from transformers import LlamaConfig
from turns import Cost, in_turns, ratios

from predistill.assets import teacher_path
from predistill.corpus import Corpus
from predistill.memory import keep_freed_memory
from predistill.objective import Sampled, TopPK, Truncation
from predistill.recipe import Recipe
from predistill.stages.capture import capture
from predistill.stages.inputs import pick_device
from predistill.stages.select import select
from predistill.store import Store
from predistill.students.forward import head_of, hidden_states
from predistill.teachers.load import load_teacher

WIDE = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 2, "num_attention_heads": 4}
STORES: dict[str, tuple[Truncation, dict[str, Any]]] = {
    "top-.95-100": (TopPK(p=0.95, k=100), {}),
    "top-.95-50, tau 2": (
        TopPK(p=0.95, k=50),
        {"truncation": {"kind": "top_p_k", "p": 0.95, "k": 50}, "temperature": {"kind": "static", "value": 2.0}},
    ),
    "50 draws": (
        Sampled(draws=50),
        {"truncation": {"kind": "sampled", "draws": 50}, "tail": {"kind": "as_sampled"}},
    ),
}
LIVE: dict[str, dict[str, Any]] = {"live top-.95-100": {}, "live, all words": {"truncation": {"kind": "full"}}}
HERE = ", readers 0"


class Job(NamedTuple):
    """A student, its rows and its teacher, and how many rounds of stored and of live arms are worth their time."""

    corpus: Corpus
    teacher: Path
    student: str
    batch_rows: int
    rounds: int
    live_rounds: int

    def recipe(self, arm: str, stores: dict[str, Path]) -> Recipe:
        """Of an arm, by its name."""
        kind, more = arm.removesuffix(HERE), {"readers": 0} if arm.endswith(HERE) else {}
        of = {"corpus": self.corpus, "student": self.student, "batch_rows": self.batch_rows}
        if kind in STORES:
            return recipe_of(**of, store=stores[kind], **STORES[kind][1], **more)
        return recipe_of(**of, **({"live": self.teacher, **LIVE[kind]} if kind in LIVE else {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="of the small student; other numbers follow from it")
    parser.add_argument(
        "--only", choices=["nano", "wide"], help="one student; it and other rounds are printed, not kept"
    )
    args = parser.parse_args()
    keep_freed_memory()  # as the program does
    rounds, gguf = args.rounds, gguf_teacher()
    cases: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.only != "wide":
            corpus = nano_corpus(folder / "nano", text_bytes=64_000)
            nano = Job(corpus, teacher_path(), "nano-s", 16, rounds, max(1, rounds // 3))
            cases["nano-s, V 2,048"] = measured(nano, folder)
        if args.only != "nano" and gguf is not None:
            LlamaConfig(**WIDE, tie_word_embeddings=True, max_position_embeddings=ROW_LEN).save_pretrained(folder)
            corpus = smollm2_corpus(folder / "smollm2", text_bytes=20_000)
            wide = Job(corpus, gguf, str(folder), 8, max(1, rounds // 8), max(1, rounds // 20))
            cases["width 256, V 49,152"] = measured(wide, folder)
    note = {} if gguf is not None else {"note": "V 49,152 left out: $PREDISTILL_GGUF names no file."}
    content = {"threads": torch.get_num_threads(), "cases": cases, **note}
    if args.only is None and rounds == parser.get_default("rounds"):
        write_record("step", content)
    else:
        print(json.dumps(content, indent=2))


def measured(job: Job, folder: Path) -> dict[str, Any]:
    stores = {name: captured(job, folder / f"{job.corpus.path.name}-{i}", name) for i, name in enumerate(STORES)}
    arms = {name: Arm(job.recipe(name, stores)) for name in ("lm", *STORES, *(name + HERE for name in STORES))}
    costs = in_turns(arms, rounds=job.rounds)
    found: dict[str, dict[str, Any]] = {}
    for name, arm in arms.items():
        waited = arm.batches.stall_seconds / sum(cost.wall for cost in costs[name])
        found[name] = {**row(costs[name], costs["lm"], arm.tokens), "stall": round(waited, 4)}
        if (store := stores.get(name.removesuffix(HERE))) is not None:
            found[name]["entries_a_position"] = kept(store)
    live, peers = live_and_peers(job, arms["lm"])
    for name in ("lm", *STORES, *LIVE):
        (found if name in found else live)[name] |= peak_apart(job.recipe(name, stores))
    for arm in arms.values():
        arm.batches.__exit__()
    return {
        "teacher": job.teacher.name,
        "batch_tokens": arms["lm"].tokens,
        "rounds": job.rounds,
        "arms": found,
        "live_rounds": job.live_rounds,
        "live": live,
        "peers": peers,
    }


def live_and_peers(job: Job, lm: Arm) -> tuple[dict[str, Any], dict[str, Any]]:
    model = load_teacher(job.teacher, vocab_size=job.corpus.vocab_size, device=pick_device(), dtype=torch.float32)

    def bare(step: int) -> None:
        ids, _ = job.corpus.rows(lm.batches.rows(step)[1])
        with torch.inference_mode():
            for hidden_TD in hidden_states(model, torch.from_numpy(ids[:, :-1]), end_id=None):
                head_of(model).logits(hidden_TD)

    lives = {name: Arm(job.recipe(name, {})) for name in LIVE}
    costs = in_turns({"lm": lm, "bare teacher": bare, **lives}, rounds=job.live_rounds)
    both = [Cost(a.cpu + b.cpu, a.wall + b.wall) for a, b in zip(costs["lm"], costs["bare teacher"], strict=True)]
    found = {name: row(costs[name], costs["lm"], lm.tokens) for name in ("bare teacher", *LIVE)}
    for name in LIVE:
        found[name] |= {f"of_lm_and_bare_{key}": value for key, value in ratios(costs[name], both).items()}
    peers = {}
    for name, (package, make) in TRAINERS.items():
        arm, ours = (lm, lm) if package == "transformers" else (lives["live, all words"], lives["live, all words"])
        rounds = job.rounds if arm is lm else job.live_rounds
        try:
            theirs, own = beside(make, arm, ours, rounds=rounds)
        except (ImportError, PackageNotFoundError) as error:
            peers[name] = {"absent": str(error)}
            continue
        against = "lm" if arm is lm else "live, all words"
        peers[name] = {"of": installed(package), "rounds": rounds, "against": against, **row(theirs, own, lm.tokens)}
    return found, peers


def row(costs: Sequence[Cost], plain: Sequence[Cost], tokens: int) -> dict[str, Any]:
    seconds = statistics.median(cost.wall for cost in costs)
    return {
        **ratios(costs, plain),
        "cpu_seconds": round(statistics.median(cost.cpu for cost in costs), 4),
        "seconds": round(seconds, 4),
        "tokens_a_second": round(tokens / seconds, 1),
    }


def captured(job: Job, out: Path, name: str) -> Path:
    """A store of the job's rows; the narrower truncation is cut out of the wider store, which needs no teacher."""
    truncation = STORES[name][0]
    if name == "top-.95-50, tau 2":
        select(out.with_name(out.name[:-1] + "0"), out=out, top_k=50)
    else:
        capture(job.teacher, corpus=job.corpus.path, out=out, truncation=truncation)
    return out


def kept(store: Path) -> float:
    totals = Store(store).totals
    return round(totals["entries"] / totals["positions"], 2)


if __name__ == "__main__":
    main()
