"""Open what a recipe names, check that it fits together before anything is allocated, and derive what follows."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from predistill.corpus import Corpus
from predistill.errors import RecipeError, RunError, StoreError
from predistill.fingerprint import file_sha256
from predistill.objective import EntropyScaled, StdScaled, check_combination, check_narrower
from predistill.recipe import CorpusEntry, LiveTeaching, Recipe
from predistill.runs import Run, command_line
from predistill.stages.sizes import batch_rows, run_sizes
from predistill.store import Store
from predistill.students.build import read_config, student_config
from predistill.teachers.load import teacher_config, teacher_facts
from predistill.teachers.stored import stored_truncation
from predistill.training.parallel import copy_size
from predistill.training.step import Objective
from predistill.world import world_size

__all__ = [
    "Inputs",
    "check_expected",
    "machine",
    "matching_store",
    "open_inputs",
    "pick_device",
    "start_config",
    "start_path",
    "versions",
]


@dataclass(frozen=True)
class Inputs:
    """The corpora and stores of a recipe, in its order (None: a corpus without a store), the held-out splits that are
    measured, by path, and the configurations of the student and of a live teacher."""

    corpora: tuple[Corpus, ...]
    heldout: dict[str, Corpus]
    stores: tuple[Store | None, ...]
    config: PretrainedConfig
    batch_rows: int
    teacher: PretrainedConfig | None = None

    @property
    def masked_by(self) -> int | None:
        """The end token that attention does not look across; None where it looks at whole rows."""
        first = self.corpora[0]
        return first.end_id if first.document_mask else None

    def objective(self, recipe: Recipe) -> Objective:
        """The recipe's loss; a scaled temperature without a reference takes its statistic's mean over the stores."""
        temperature = recipe.temperature
        if isinstance(temperature, StdScaled | EntropyScaled) and temperature.reference is None and self.stores:
            temperature = replace(temperature, reference=_mean(temperature.mean, [s for s in self.stores if s]))
        return Objective(recipe.loss, temperature, recipe.tail, recipe.positions)

    def environment(self, recipe: Recipe) -> dict[str, Any]:
        """What environment.json keeps; `identity` is what must not differ when a run goes on."""
        live = teacher_facts(recipe.teacher.model) if isinstance(recipe.teacher, LiveTeaching) else None
        return {
            "command": command_line(),
            "identity": {
                "corpus": [corpus.fingerprint for corpus in self.corpora],
                "store": [None if store is None else store.manifest["store_id"] for store in self.stores],
                **({} if live is None else {"teacher": live["sha256"]}),
            },
            "inputs": {
                "corpus": [
                    {"path": entry.path, "fingerprint": corpus.fingerprint, **corpus.split_stats}
                    for entry, corpus in zip(recipe.corpus, self.corpora, strict=True)
                ],
                "store": [
                    {
                        "path": entry.store,
                        "totals": store.totals,
                        "bytes_by_stream": store.bytes_by_stream(),
                        "manifest": {
                            key: store.manifest.get(key)
                            for key in ("teacher", "tokenizer", "truncation", "sampling", "self_test")
                        },
                    }
                    for entry, store in zip(recipe.corpus, self.stores, strict=False)
                    if store is not None
                ],
                **({} if live is None else {"teacher": live}),
            },
            "versions": versions(),
            "machine": machine(),
            **self.sizes(recipe),
        }

    def sizes(self, recipe: Recipe) -> dict[str, Any]:
        """What the run takes: `run_sizes` of these inputs, and the bytes of the stores."""
        row_len = self.corpora[0].row_len
        sizes = run_sizes(
            recipe,
            config=self.config,
            row_len=row_len,
            corpus_tokens=[len(corpus) * row_len for corpus in self.corpora],
            teacher=self.teacher,
            ranks=world_size(),
        )
        return sizes | {"store_bytes": sum(store.totals["bytes"] for store in self.stores if store is not None)}


def open_inputs(recipe: Recipe) -> Inputs:
    """Open every corpus and store of `recipe`; raises one sentence when something does not fit."""
    corpora = tuple(Corpus(entry.path) for entry in recipe.corpus)
    first = corpora[0]
    for entry, corpus in zip(recipe.corpus, corpora, strict=True):
        for what, value, expected in (
            ("row length", corpus.row_len, first.row_len),
            ("vocabulary", corpus.vocab_size, first.vocab_size),
            ("tokenizer", corpus.manifest["tokenizer"]["sha256"], first.manifest["tokenizer"]["sha256"]),
            ("end token", corpus.end_id, first.end_id),
            ("document mask", corpus.document_mask, first.document_mask),
        ):
            if value != expected:
                raise RecipeError(
                    f"{entry.path} and {recipe.corpus[0].path} do not mix: {what} {value} and {expected}. "
                    "Prepare both with the same tokenizer, --row-len and --document-mask."
                )
        if len(corpus) == 0:
            raise RecipeError(
                f"{entry.path}: no whole row of {corpus.row_len} tokens to train on. Add text, or lower --row-len."
            )
        check_expected(entry, corpus)
    rows = batch_rows(recipe, first.row_len, ranks=world_size())
    copy_size(world_size(), recipe.shard)
    stores: tuple[Store | None, ...] = ()
    if recipe.teacher.kind == "stored":
        stores = tuple(
            None if entry.store is None else matching_store(entry.store, corpus, recipe)
            for entry, corpus in zip(recipe.corpus, corpora, strict=True)
        )
    if recipe.student.from_ is not None:
        config = _start_config(recipe.student.from_, first)
    else:
        config = student_config(
            recipe.student.preset, vocab_size=first.vocab_size, row_len=first.row_len, end_id=first.end_id
        )
    teacher = None
    if isinstance(recipe.teacher, LiveTeaching):
        teacher = teacher_config(recipe.teacher.model, vocab_size=first.vocab_size)
    if recipe.watch.baseline is not None and not any(
        line["kind"] == "heldout" for line in Run(recipe.watch.baseline).metrics()
    ):
        raise RecipeError(
            f"watch.baseline: {recipe.watch.baseline} has measured nothing on held-out text. Name a finished run on "
            "text alone, or null."
        )
    inputs = Inputs(
        corpora,
        {path: _heldout(path, first) for path in recipe.heldout or (recipe.corpus[0].path,)},
        stores,
        config,
        rows,
        teacher,
    )
    inputs.objective(recipe)  # raises where a temperature refers to what no store knows
    return inputs


def check_expected(entry: CorpusEntry, corpus: Corpus) -> None:
    """Raises RecipeError unless the corpus is what the entry expects, if it expects anything."""
    if entry.expects is None:
        return
    for what, key, found, expected, agrees in (
        ("words", "vocab_size", corpus.vocab_size, entry.expects.vocab_size, int.__eq__),
        ("tokens a row", "row_len", corpus.row_len, entry.expects.row_len, int.__eq__),
        ("training tokens", "tokens", len(corpus) * corpus.row_len, entry.expects.tokens, int.__ge__),
    ):
        if not agrees(found, expected):
            raise RecipeError(
                f"{entry.path}: has {found:,} {what}, and the recipe expects {expected:,} (corpus[].expects.{key}). "
                "Prepare another corpus, or change what is expected: null expects nothing."
            )


def start_path(start: str) -> Path:
    """The model that student.from names: a finished run's, or itself. Raises RunError."""
    path = Path(start)
    if (path / "recipe.yaml").exists():
        if Run(path).done is None:
            raise RunError(
                f"student.from: {path} is a run that is not finished. Let `predistill train` finish it first."
            )
        return path / "model"
    if not path.exists():
        raise RunError(f"student.from: {path} is not there. Name a finished run or a Hugging Face directory.")
    return path


def start_config(start: str) -> PretrainedConfig:
    """The configuration of the model that a student starts from."""
    path = start_path(start)
    try:
        return read_config(path)
    except ValueError as reason:
        raise RunError(
            f"student.from: {path} is no model ({reason}). Name a finished run or a Hugging Face directory."
        ) from None


def _start_config(start: str, corpus: Corpus) -> PretrainedConfig:
    """The same, whose words have to be the corpus's."""
    config, path = start_config(start), start_path(start)
    words, ours = config.get_text_config().vocab_size, path.parent / "recipe.yaml"
    same = not ours.exists() or file_sha256(path / "tokenizer.json") == corpus.manifest["tokenizer"]["sha256"]
    if words < corpus.vocab_size or not same:  # a model from elsewhere may have columns that no word needs
        what = "another tokenizer" if words == corpus.vocab_size else f"{words:,} words"
        raise RecipeError(
            f"student.from: {start} has {what}, and {corpus.path} was prepared with {corpus.vocab_size:,} words of its "
            "own tokenizer. Prepare the corpus with the model's (`predistill prepare --tokenizer`), or start from null."
        )
    return config


def versions() -> dict[str, str]:
    """Of Python and of what computes."""
    packages = ("predistill", "torch", "transformers", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def machine() -> dict[str, Any]:
    """What this process computes on; no names of hosts or paths."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device_name(pick_device()),
        "ranks": world_size(),
    }


def pick_device() -> torch.device:
    """This process's CUDA device when there is one (the one of its local rank, of several), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def _heldout(path: str, first: Corpus) -> Corpus:
    """A held-out split in the student's words."""
    split = Corpus(path, split="held_out")
    if split.manifest["tokenizer"]["sha256"] != first.manifest["tokenizer"]["sha256"]:
        raise RecipeError(
            f"heldout: {path} has another tokenizer than {first.path}. Prepare it with the same, or leave it out."
        )
    return split


def _mean(name: str, stores: list[Store]) -> float:
    """What the captures measured of their teachers, weighted by positions."""
    tests = [(store.manifest.get("self_test") or {}, store.totals["positions"]) for store in stores]
    if any(name not in test for test, _ in tests):
        raise RecipeError(
            f"A store's manifest has no {name}, which the temperature refers to: set temperature.reference."
        )
    total = sum(float(test[name]) * int(positions) for test, positions in tests)
    return total / sum(int(positions) for _, positions in tests)


def matching_store(path: str, corpus: Corpus, recipe: Recipe) -> Store:
    """The store at `path`, open. Raises StoreError where it is of another corpus, RecipeError where the recipe cannot
    read it so."""
    store = Store(path)
    made_from = store.manifest["corpus"]
    for what, value, expected in (
        ("corpus fingerprint", made_from["fingerprint"], corpus.fingerprint),
        ("document mask", made_from["document_mask"], corpus.document_mask),
        ("rows", len(store), len(corpus)),
    ):
        if value != expected:
            raise StoreError(
                f"{path}: was captured over another corpus ({what} {value}, this one has {expected}). "
                "Capture it again with `predistill capture`, or train on the corpus named in its manifest."
            )
    check_narrower(recipe.truncation, stored_truncation(store))
    taus = (store.manifest["lse_tau"],) if "lse_tau" in store.manifest else ()
    check_combination(recipe.loss, recipe.tail, recipe.temperature, recipe.truncation, taus=taus)
    return store
