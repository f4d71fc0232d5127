"""Open what a recipe names, check that it fits together before anything is allocated, and derive what follows."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from predistill.corpus import Corpus
from predistill.errors import RecipeError, StoreError
from predistill.laws import forward_flops, training_bytes, training_flops
from predistill.objective import EntropyScaled, StdScaled, check_combination, check_narrower
from predistill.recipe import LiveTeaching, Recipe
from predistill.runs import command_line
from predistill.store import Store
from predistill.students.build import student_config
from predistill.teachers.load import DTYPES, teacher_config, teacher_facts
from predistill.teachers.stored import stored_truncation
from predistill.training.step import Objective

__all__ = ["Inputs", "open_inputs", "pick_device"]


@dataclass(frozen=True)
class Inputs:
    """The corpora and stores of a recipe, in its order, and the configurations of the student and of a live teacher."""

    corpora: tuple[Corpus, ...]
    heldout: Corpus
    stores: tuple[Store, ...]
    config: PretrainedConfig
    batch_rows: int
    teacher: PretrainedConfig | None = None

    def objective(self, recipe: Recipe) -> Objective:
        """The recipe's loss; a scaled temperature without a reference takes its statistic's mean over the stores."""
        temperature = recipe.temperature
        if isinstance(temperature, StdScaled | EntropyScaled) and temperature.reference is None and self.stores:
            temperature = replace(temperature, reference=_mean(temperature.mean, self.stores))
        return Objective(recipe.loss, temperature, recipe.tail, recipe.positions)

    def environment(self, recipe: Recipe) -> dict[str, Any]:
        """What environment.json keeps; `identity` is what must not differ when a run goes on."""
        live = teacher_facts(recipe.teacher.model) if isinstance(recipe.teacher, LiveTeaching) else None
        return {
            "command": command_line(),
            "identity": {
                "corpus": [corpus.fingerprint for corpus in self.corpora],
                "store": [store.manifest["store_id"] for store in self.stores],
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
                ],
                **({} if live is None else {"teacher": live}),
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
        student, row_len = _Shape.of(self.config), self.corpora[0].row_len
        tokens = recipe.steps * self.batch_rows * row_len
        training = training_flops(
            matrix_parameters=student.matrix_parameters, layers=student.layers, width=student.width, row_len=row_len
        )
        memory_bytes = training_bytes(
            parameters=student.parameters,
            vocab_size=self.config.vocab_size,
            layers=student.layers,
            width=student.width,
            ffn=getattr(self.config, "intermediate_size", None) or 4 * student.width,  # GPT-2 has no name for it
            micro_batch_tokens=recipe.micro_batch_rows * row_len,
        )
        taught: dict[str, Any] = {}
        if self.teacher is not None and isinstance(recipe.teacher, LiveTeaching):
            teacher = _Shape.of(self.teacher)
            forward = forward_flops(
                matrix_parameters=teacher.matrix_parameters, layers=teacher.layers, width=teacher.width, row_len=row_len
            )
            taught = {"teacher_parameters": teacher.parameters, "teacher_flops": tokens * forward}
            memory_bytes["teacher"] = teacher.parameters * DTYPES[recipe.teacher.dtype].itemsize
        return {
            "parameters": student.parameters,
            "non_embedding_parameters": student.inner_parameters,
            "steps": recipe.steps,
            "batch_tokens": self.batch_rows * row_len,
            "tokens": tokens,
            "epochs": tokens / sum(len(corpus) * row_len for corpus in self.corpora),
            "flops": tokens * training + taught.get("teacher_flops", 0),
            **taught,
            "memory_bytes": memory_bytes,
            "store_bytes": sum(store.totals["bytes"] for store in self.stores),
        }


@dataclass(frozen=True)
class _Shape:
    """What a model's cost depends on; `inner_parameters`: all but embedding and head."""

    parameters: int
    inner_parameters: int
    matrix_parameters: int
    layers: int
    width: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> _Shape:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        parameters = sum(p.numel() for p in model.parameters())
        text, head = config.get_text_config(), model.get_output_embeddings().weight.numel()
        inner = parameters - (head if text.tie_word_embeddings else 2 * head)
        return cls(parameters, inner, inner + head, text.num_hidden_layers, text.hidden_size)


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
    teacher = None
    if isinstance(recipe.teacher, LiveTeaching):
        teacher = teacher_config(recipe.teacher.model, vocab_size=first.vocab_size)
    return Inputs(
        corpora,
        Corpus(recipe.corpus[0].path, split="held_out"),
        stores,
        config,
        recipe.batch_tokens // first.row_len,
        teacher,
    )


def pick_device() -> torch.device:
    """This process's CUDA device when there is one (the one of its local rank, of several), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


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
    taus = (store.manifest["lse_tau"],) if "lse_tau" in store.manifest else ()
    check_combination(recipe.loss, recipe.tail, recipe.temperature, recipe.truncation, taus=taus)
    return store
