"""Does difference sampling help a nano student at equal tokens? The half it keeps against random halves, real text.

    OMP_NUM_THREADS=1 python studies/difference/run.py OUT    (goes on where it was; $PREDISTILL_DATA: the corpora)

Text: every twelfth document of each corpus, 3.5M tokens. Teacher: the embedded one. Reference: a nano-xs student on 1M
tokens of the same corpus. Students: nano-s, text alone, 1M tokens; seed s reads the difference half, the half of each
source that difference sampling keeps there (within), or the random half that is drawn with seed s. One held-out split
for all. Records are kept here, README.md says what they mean.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import xxhash
import zstandard
from tokenizers import Tokenizer

from predistill.assets import teacher_path, tokenizer_path
from predistill.corpus import Corpus
from predistill.corpus.chosen import copy_chosen, document_hashes, document_stops
from predistill.memory import keep_freed_memory
from predistill.objective import TopK
from predistill.recipe import read_recipe
from predistill.report.gains import student_t_975
from predistill.stages.capture import capture
from predistill.stages.difference import difference_scores, select, top_documents
from predistill.stages.evaluate import evaluate
from predistill.stages.prepare import prepare
from predistill.stages.train import train
from predistill.store import Store

HERE = Path(__file__).parent
DATA = Path(os.environ.get("PREDISTILL_DATA", HERE.parents[2] / "shared" / "data"))
EVERY, HELD_OUT, FRAC, SEEDS = 12, 0.03, 0.5, range(5)  # the teacher never saw documents of the held-out 3 %
ARMS = ("random", "difference", "within")
RECORDS = ("recipe.yaml", "environment.json", "metrics.jsonl", "evaluation.json", "DONE")
CHEAP = TopK(k=1)  # a store keeps the label's log-probability whatever else it keeps


def main() -> None:
    """Prepare, train the reference, capture, select, train, evaluate, keep the records."""
    keep_freed_memory()
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)  # paths in the records are relative to the study
    if not Path("corpus").exists():
        Path("text.jsonl").write_text("".join(line for _, line in lines()), encoding="utf-8")
        prepare("text.jsonl", out="corpus", tokenizer=tokenizer_path(), held_out=HELD_OUT)
    reference = trained("reference")
    for name, model in (("reference", reference), ("teacher", teacher_path())):
        capture(model, corpus="corpus", out=f"store-{name}", truncation=CHEAP)
    if not Path("difference-half").exists():
        select("corpus", out="difference-half", frac=FRAC, by="store-teacher", reference="store-reference")
    if not Path("within-half").exists():
        scored = Scored(Corpus("corpus"))
        facts = {"selected": [{"corpus": scored.corpus.fingerprint, "frac": FRAC, "score": "difference within source"}]}
        chosen_D = scored.halves("within")[0]
        copy_chosen(
            scored.corpus, chosen_D, scored.stop_D, out=Path("within-half"), facts=facts, on_bytes=lambda _: None
        )
    for seed in SEEDS:
        if not Path(f"random-half-{seed}").exists():
            select("corpus", out=f"random-half-{seed}", frac=FRAC, seed=seed)
        for arm in ARMS:
            half = f"random-half-{seed}" if arm == "random" else f"{arm}-half"
            run = trained(arm, f"seed={seed}", f"corpus=[{{path: {half}}}]")
            capture(run, corpus="corpus", out=f"store-{run.name}", truncation=CHEAP, split="held_out")
    found = {
        "losses": losses(),
        "selection": selection(),
        "held_out_by_source": held_out_by_source(),
        "capture_cpu_seconds": {
            name: json.loads(Path(f"store-{name}/capture.json").read_text())["cpu_seconds"]
            for name in ("teacher", "reference")
        },
    }
    (HERE / "records" / "summary.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def lines() -> Iterator[tuple[str, str]]:
    """Every twelfth document of each corpus: its name, and a line of JSON."""
    for corpus in sorted((DATA / "corpora").glob("*.jsonl.zst")):
        with corpus.open("rb") as compressed:
            reader = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(compressed), encoding="utf-8")
            for number, line in enumerate(reader):
                if number % EVERY == 0:
                    yield corpus.name.split(".")[0], line


def trained(name: str, *overrides: str) -> Path:
    """The finished run of a recipe of this folder, evaluated, its records kept."""
    recipe = read_recipe(HERE / f"{name}.yaml", list(overrides))
    if overrides:
        recipe = recipe.model_copy(update={"name": f"{name}-seed{recipe.seed}"})
    run = train(recipe, out=f"runs/{recipe.name}")
    if run.evaluation is None:
        evaluate(run.path, corpus="corpus")
    print(recipe.name, (run.evaluation or {})["heldout"]["loss_nats"], flush=True)
    kept = HERE / "records" / recipe.name
    kept.mkdir(parents=True, exist_ok=True)
    for file in RECORDS:
        shutil.copyfile(run.path / file, kept / file)
    return run.path


class Scored:
    """The training documents, their scores and sources, and the halves of each arm, one a seed where it is random."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.stop_D = document_stops(corpus)
        self.label_D = np.diff(self.stop_D, prepend=0)
        self.score_D = difference_scores(corpus, self.stop_D, Store("store-teacher"), Store("store-reference"))
        self.source_D = sources(corpus, self.stop_D)

    def halves(self, arm: str) -> list[np.ndarray]:
        """The chosen documents."""
        if arm == "difference":
            return [top_documents(self.score_D, self.stop_D, frac=FRAC)]
        if arm == "random":
            hashes = (document_hashes(self.corpus, self.stop_D, seed=seed) / 2.0**64 for seed in SEEDS)
            return [top_documents(hash_D, self.stop_D, frac=FRAC) for hash_D in hashes]
        chosen_D = np.zeros(len(self.stop_D), dtype=bool)
        for name in set(self.source_D.tolist()):
            here = self.source_D == name
            chosen_D[here] = top_documents(self.score_D[here], np.cumsum(self.label_D[here]), frac=FRAC)
        return [chosen_D]


def losses() -> dict[str, Any]:
    """Held-out nats a token of each arm by seed; the paired differences to random with 95 % intervals over seeds."""
    found = {
        arm: [
            json.loads(Path(f"runs/{arm}-seed{seed}/evaluation.json").read_text())["heldout"]["loss_nats"]
            for seed in SEEDS
        ]
        for arm in ARMS
    }
    return {**found, **against_random(found)}


def against_random(losses: dict[str, list[float]]) -> dict[str, Any]:
    """The other arms' losses less the random arm's, seed by seed."""
    return {f"{arm}_less_random": paired(losses[arm], losses["random"]) for arm in ARMS[1:]}


def paired(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Mean of ours less theirs; mean -+ t(.975, n - 1) * sd / sqrt(n)."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    half = student_t_975(len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
    mean = fmean(differences)
    return {"mean_difference": mean, "interval_95": [mean - half, mean + half]}


def selection() -> dict[str, Any]:
    """What the halves hold: the manifest's words, the mean scores of each arm's halves, each source's kept share."""
    scored = Scored(Corpus("corpus"))
    halves = {arm: scored.halves(arm) for arm in ARMS}

    def source(name: str) -> dict[str, Any]:
        here = scored.source_D == name
        tokens = int(scored.label_D[here].sum())
        shares = {
            f"kept_{arm}": fmean(float(scored.label_D[half & here].sum() / tokens) for half in found)
            for arm, found in halves.items()
        }
        score = float(np.average(scored.score_D[here], weights=scored.label_D[here]))
        return {"documents": int(here.sum()), "tokens": tokens, "score_by_token": score, **shares}

    return {
        "manifest": Corpus("difference-half").manifest["selected"],
        "documents": {arm: [int(half.sum()) for half in found] for arm, found in halves.items()},
        "mean_score": {arm: [float(scored.score_D[half].mean()) for half in found] for arm, found in halves.items()},
        "mean_score_by_token": {
            arm: [float(np.average(scored.score_D[half], weights=scored.label_D[half])) for half in found]
            for arm, found in halves.items()
        },
        "sources": {name: source(name) for name in sorted(set(scored.source_D.tolist()))},
    }


def held_out_by_source() -> dict[str, Any]:
    """The held-out loss of each source's documents, and the paired differences."""
    corpus = Corpus("corpus", "held_out")
    stop_D = document_stops(corpus)
    source_D = sources(corpus, stop_D)
    source_N = np.repeat(source_D, np.diff(stop_D, prepend=0))

    def loss_N(arm: str, seed: int) -> np.ndarray:
        targets = Store(f"store-{arm}-seed{seed}").rows(np.arange(len(corpus)), fields=("label_logprob_N",))
        assert targets.label_logprob_N is not None
        return -targets.label_logprob_N.astype(np.float64)

    losses = {arm: [loss_N(arm, seed) for seed in SEEDS] for arm in ARMS}
    found = {}
    for name in sorted(set(source_D.tolist())):
        here = source_N == name
        means = {arm: [float(loss[here].mean()) for loss in by_seed] for arm, by_seed in losses.items()}
        facts = {"documents": int((source_D == name).sum()), "tokens": int(here.sum())}
        found[name] = facts | {arm: fmean(values) for arm, values in means.items()} | against_random(means)
    return found


def sources(corpus: Corpus, stop_D: np.ndarray) -> np.ndarray:
    """The corpus file that each document came from, known by its tokens; "cut" for the last."""
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_path))
    tokenizer.encode_special_tokens = True
    known = {}
    for name, line in lines():
        ids = tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids
        known[xxhash.xxh64_intdigest(np.array([*ids, corpus.end_id], "<i4").tobytes(), seed=0)] = name
    return np.array([known.get(int(found), "cut") for found in document_hashes(corpus, stop_D, seed=0)])


if __name__ == "__main__":
    HERE = HERE.resolve()
    DATA = DATA.resolve()
    main()
