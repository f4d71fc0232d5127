"""Open what a recipe names, check that it fits together before anything is allocated, and derive what follows."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from transformers import PretrainedConfig

from predistill.corpus import Corpus
from predistill.errors import RecipeError, StoreError
from predistill.laws import training_bytes, training_flops
from predistill.objective import EntropyScaled, StdScaled, check_combination, check_narrower
from predistill.recipe import Recipe
from predistill.runs import command_line
from predistill.store import Store
from predistill.students.build import student_config
from predistill.teachers.stored import stored_truncation
from predistill.training.step import Objective

__all__ = ["Inputs", "open_inputs", "pick_device"]


@dataclass(frozen=True)
class Inputs:
    """The corpora and stores of a recipe, in its order, and the student's configuration."""

    corpora: tuple[Corpus, ...]
    heldout: Corpus
    stores: tuple[Store, ...]
    config: PretrainedConfig
    batch_rows: int

    def objective(self, recipe: Recipe) -> Objective:
        """The recipe's loss; a scaled temperature without a reference takes its statistic's mean over the stores."""
        temperature = recipe.temperature
        if isinstance(temperature, StdScaled | EntropyScaled) and temperature.reference is None and self.stores:
            temperature = replace(temperature, reference=_mean(temperature.mean, self.stores))
        return Objective(recipe.loss, temperature, recipe.tail, recipe.positions)

    def environment(self, recipe: Recipe) -> dict[str, Any]:
        """What environment.json keeps; `identity` is what must not differ when a run goes on."""
        return {
            "command": command_line(),
            "identity": {
                "corpus": [corpus.fingerprint for corpus in self.corpora],
                "store": [store.manifest["store_id"] for store in self.stores],
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
                ],
            },
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("predistill", "torch", "transformers", "numpy")},
            "machine": {
                "system": platform.system(),
                "machine": platform.machine(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "device": device_name(pick_device()),
            },
            **self.sizes(recipe),
        }

    def sizes(self, recipe: Recipe) -> dict[str, Any]:
        """Parameters, steps, FLOPs, bytes of memory and of the stores: what --dry-run prints."""
        with torch.device("meta"):
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_config(self.config)
        parameters = sum(p.numel() for p in model.parameters())
        head = model.get_output_embeddings().weight.numel()
        tied = bool(self.config.tie_word_embeddings)
        inner = parameters - (head if tied else 2 * head)
        shape = {"layers": self.config.num_hidden_layers, "width": self.config.hidden_size}
        row_len, tokens = self.corpora[0].row_len, recipe.steps * self.batch_rows * self.corpora[0].row_len
        return {
            "parameters": parameters,
            "non_embedding_parameters": inner,
            "steps": recipe.steps,
            "batch_tokens": self.batch_rows * row_len,
            "tokens": tokens,
            "epochs": tokens / sum(len(corpus) * row_len for corpus in self.corpora),
            "flops": tokens * training_flops(matrix_parameters=inner + head, row_len=row_len, **shape),
            "memory_bytes": training_bytes(
                parameters=parameters,
                vocab_size=self.config.vocab_size,
                ffn=getattr(self.config, "intermediate_size", None)
                or 4 * self.config.hidden_size,  # GPT-2 has no name for it
                micro_batch_tokens=recipe.micro_batch_rows * row_len,
                **shape,
            ),
            "store_bytes": sum(store.totals["bytes"] for store in self.stores),
        }


def open_inputs(recipe: Recipe) -> Inputs:
    """Open every corpus and store of `recipe`; raises one sentence when something does not fit."""
    corpora = tuple(Corpus(entry.path) for entry in recipe.corpus)
    first = corpora[0]
    for entry, corpus in zip(recipe.corpus, corpora, strict=True):
        for what, value, expected in (
            ("row length", corpus.row_len, first.row_len),
            ("vocabulary", corpus.vocab_size, first.vocab_size),
            ("tokenizer", corpus.manifest["tokenizer"]["sha256"], first.manifest["tokenizer"]["sha256"]),
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
    if recipe.batch_tokens % first.row_len:
        near = max(first.row_len, round(recipe.batch_tokens / first.row_len) * first.row_len)
        raise RecipeError(
            f"batch_tokens is {recipe.batch_tokens:,}, not a multiple of the row length {first.row_len}. Try {near:,}."
        )
    stores: tuple[Store, ...] = ()
    if recipe.teacher.kind == "stored":
        stores = tuple(
            _matching_store(entry.store, corpus, recipe) for entry, corpus in zip(recipe.corpus, corpora, strict=True)
        )
    config = student_config(
        recipe.student.preset, vocab_size=first.vocab_size, row_len=first.row_len, end_id=first.end_id
    )
    return Inputs(
        corpora, Corpus(recipe.corpus[0].path, split="held_out"), stores, config, recipe.batch_tokens // first.row_len
    )


def pick_device() -> torch.device:
    """The first CUDA device when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def _mean(name: str, stores: tuple[Store, ...]) -> float:
    """What the captures measured of their teachers, weighted by positions."""
    tests = [(store.manifest.get("self_test") or {}, store.totals["positions"]) for store in stores]
    if any(name not in test for test, _ in tests):
        raise RecipeError(
            f"A store's manifest has no {name}, which the temperature refers to: set temperature.reference."
        )
    total = sum(float(test[name]) * int(positions) for test, positions in tests)
    return total / sum(int(positions) for _, positions in tests)


def _matching_store(path: str | None, corpus: Corpus, recipe: Recipe) -> Store:
    assert path is not None
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
    check_combination(recipe.loss, recipe.tail, recipe.temperature, recipe.truncation, taus=())  # no store keeps any
    return store
