"""predistill quickstart: the whole path on embedded assets, and in words what the teacher was worth."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from predistill.assets import sample_path, teacher_path, tokenizer_path
from predistill.corpus import Corpus
from predistill.errors import RunError
from predistill.objective import TopPK
from predistill.recipe import Recipe, read_recipe
from predistill.runs import Run
from predistill.stages.capture import capture
from predistill.stages.evaluate import evaluate
from predistill.stages.prepare import prepare
from predistill.stages.report import report
from predistill.stages.train import train
from predistill.store import Store

__all__ = ["quickstart"]

Shown = Callable[..., AbstractContextManager[Callable[..., None]]]

TOKENS = 800_000  # a run; less where the text is so short that this would be more than MAX_EPOCHS
MAX_EPOCHS = 4
HELD_OUT = 0.03  # the embedded teacher never saw these documents of the sample


def quickstart(out: str | Path, *, text: str | Path | None = None, seed: int = 0, shown: Shown) -> dict[str, Any]:
    """Prepare, capture, train an LM-only and a distilled student from the same seed, evaluate, report; all under `out`.

    `shown(title, unit, scale)` is entered around each long piece of work and yields `advance(done, total, note)`. Every
    piece goes on where it was: after a kill, run it again. Returns the figures, and `words`: four lines for a person.
    """
    out, source = Path(out), sample_path() if text is None else Path(text)
    corpus_path, store_path = out / "corpus", out / "store"
    if not (corpus_path / "manifest.json").exists():
        with shown("prepare", "bytes") as advance:
            prepare(source, out=corpus_path, tokenizer=tokenizer_path(), held_out=HELD_OUT, on_progress=advance)
    corpus = Corpus(corpus_path)
    if (made_from := corpus.manifest["sources"][0]["name"]) != source.name:
        raise RunError(f"{out}: was begun with another text, {made_from}. Name another --out for {source.name}.")
    if len(Corpus(corpus_path, split="held_out")) == 0:
        raise RunError(
            f"{source}: too little text to hold some out. Bring some hundred kilobytes in many documents, "
            "and name another --out."
        )
    with shown("capture", "tokens", corpus.row_len) as advance:
        store = capture(
            teacher_path(), corpus=corpus_path, out=store_path, truncation=TopPK(p=0.95, k=100), on_progress=advance
        )
    runs = {}
    for arm in ("lm", "pd"):
        recipe = _recipe(arm, corpus, store_path, seed=seed)
        with shown(f"train {arm}", "tokens", recipe.batch_tokens) as advance:
            runs[arm] = train(recipe, out=out / "runs" / recipe.name, on_record=_shown_steps(recipe, advance))
        with shown(f"evaluate {arm}", "tokens", corpus.row_len) as advance:
            evaluate(runs[arm].path, teacher=teacher_path(), on_progress=advance)
    page = report([out / "runs"], out=out / "report.html")
    return _findings(runs["lm"], runs["pd"], store, page)


def _recipe(arm: str, corpus: Corpus, store: Path, *, seed: int) -> Recipe:
    """The two arms differ in the teacher alone: same student, seed, tokens and learning rate."""
    teacher = {"kind": "stored" if arm == "pd" else "none"}
    content: dict[str, Any] = {
        "name": f"{arm}-seed{seed}",
        "seed": seed,
        "corpus": [{"path": str(corpus.path), "store": str(store) if arm == "pd" else None}],
        "student": {"preset": "nano-s"},
        "teacher": teacher,
        "truncation": {"kind": "top_p_k", "p": 0.95, "k": 100},
        "tail": {"kind": "ghost"},  # top-100 leaves a fifth of this teacher's mass out: renormalising it costs .23 nats
        "loss": {"kind": "kld"},
        "alpha": {"kind": "constant", "value": 0.9},
        "lr": {"kind": "wsd", "peak": 4e-3, "warmup_frac": 0.05, "decay_frac": 0.3, "floor": 0.1},
        "tokens": min(TOKENS, MAX_EPOCHS * len(corpus) * corpus.row_len),
        "batch_tokens": 4096,
        "micro_batch_rows": 16,
    }
    return read_recipe(content)


def _shown_steps(recipe: Recipe, advance: Callable[..., None]) -> Callable[[Any], None]:
    def on_record(record: Any) -> None:
        if record["kind"] == "step":
            advance(record["step"], recipe.steps, f"loss {record['loss']:.3f}")

    return on_record


def _findings(lm: Run, pd: Run, store: Store, page: Path) -> dict[str, Any]:
    (lm_loss, lm_cost), (pd_loss, pd_cost) = _loss_and_cost(lm), _loss_and_cost(pd)
    facts = {
        "lm_loss_nats": lm_loss,
        "pd_loss_nats": pd_loss,
        "gain_nats": lm_loss - pd_loss,
        "store_bytes_per_token": store.totals["bytes"] / store.totals["positions"],
        "cpu_ratio": pd_cost["cpu_seconds"] / lm_cost["cpu_seconds"],
        "page": str(page),
    }
    gain = facts["gain_nats"]
    outcome = (
        f"The distilled student reaches {pd_loss:.3f} nats a token on held-out text, the plain one {lm_loss:.3f}: "
        f"the teacher gained it {gain:.3f} nats ({gain / lm_loss:.1%}) from the same tokens."
        if gain > 0
        else f"The teacher did not help: {pd_loss:.3f} nats a token on held-out text with it, {lm_loss:.3f} without."
    )
    megabytes, bytes_per_token = store.totals["bytes"] / 1e6, facts["store_bytes_per_token"]
    stored = f"The teacher's distributions took {bytes_per_token:.1f} bytes a token ({megabytes:.1f} MB in all)."
    cost = (
        f"A distilled step cost {facts['cpu_ratio']:.2f} times a plain one, in CPU time "
        f"({pd_cost['seconds']:.0f} s of training against {lm_cost['seconds']:.0f} s)."
    )
    return {**facts, "words": "\n".join([outcome, stored, cost, f"The report: {page}"])}


def _loss_and_cost(run: Run) -> tuple[float, dict[str, Any]]:
    done, evaluation = run.done, run.evaluation
    assert done is not None
    assert evaluation is not None
    return evaluation["heldout"]["loss_nats"], done
