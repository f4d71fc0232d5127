"""The composed, validated recipe: the only place that sees every choice of a run.

`read_recipe` turns YAML plus `key=value` overrides into a `Recipe`, or raises one clear sentence. What a recipe says is
checked here, before any file of a corpus or store is opened; `stages.train` then checks it against those.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from predistill.errors import RecipeError
from predistill.objective import (
    KLD,
    All,
    Constant,
    EntropyScaled,
    Full,
    Loss,
    Positions,
    Renormalise,
    Sampled,
    Schedule,
    Static,
    StdScaled,
    Tail,
    Temperature,
    TopPK,
    Truncation,
    check_combination,
)
from predistill.settings import load_settings, overridden, sentence
from predistill.training.watch import WatchChoice

__all__ = [
    "FREE",
    "CorpusEntry",
    "Expected",
    "LiveTeaching",
    "LogTargets",
    "NoTeacher",
    "OptimizerChoice",
    "Recipe",
    "StoredTeaching",
    "StudentChoice",
    "TeacherChoice",
    "read_recipe",
]


def _count(value: Any) -> Any:
    """`1M` -> 1,000,000; K, M, B, T are powers of a thousand."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([KMBT])", value.strip()) if isinstance(value, str) else None
    return round(float(match[1]) * 1000 ** ("KMBT".index(match[2]) + 1)) if match else value


def _cadence(value: Any) -> Any:
    """`5%` -> 0.05 of the run; a number above 1, or a whole one = every so many steps."""
    return float(value.strip()[:-1]) / 100 if isinstance(value, str) and value.strip().endswith("%") else value


Count = Annotated[int, BeforeValidator(_count), Field(gt=0)]
Cadence = Annotated[Annotated[int | float, Field(gt=0)] | None, BeforeValidator(_cadence)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Expected(_Strict):
    """What a corpus has to be: its vocabulary and row length exactly, and at least so many training tokens.

    A corpus that is there is checked. Where there is none yet, `--dry-run` reckons with these figures, and with a store
    estimated from them. `teacher_parameters`: of the store's teacher, for what its capture costs; no store tells it.
    """

    vocab_size: Count
    row_len: Count
    tokens: Count
    teacher_parameters: Count | None = None


class CorpusEntry(_Strict):
    """A corpus of the mixture, and the store of the teacher's distributions over its training rows. One without a store
    teaches by its text alone."""

    path: str
    weight: float = Field(default=1.0, gt=0)
    store: str | None = None
    expects: Expected | None = None


class StudentChoice(_Strict):
    """The student's architecture, and the run or model whose weights it starts from (null: from scratch)."""

    preset: str = "nano-s"
    from_: str | None = Field(default=None, alias="from")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class NoTeacher:
    """The text alone: LM loss."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class StoredTeaching:
    """Targets are read from the stores that the corpus entries name."""

    kind: Literal["stored"] = "stored"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LiveTeaching:
    """Targets come from a forward pass of `model` in every step: a Hugging Face directory, a .gguf file or a finished
    run, in precision `dtype`. One model serves every corpus; stores that the corpus entries name are not read."""

    model: str
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    kind: Literal["live"] = "live"


TeacherChoice = Annotated[NoTeacher | StoredTeaching | LiveTeaching, Field(discriminator="kind")]


class LogTargets(_Strict):
    """The run writes its own distributions to store `out`, for the rows that it trains on between `from_frac` and
    `to_frac` of its steps (the "online" logits of arXiv 2410.16215), at most `rows` of them (null: all)."""

    out: str
    from_frac: float = Field(default=0.75, ge=0, lt=1)
    to_frac: float = Field(default=1.0, gt=0, le=1)
    rows: Count | None = None
    truncation: Truncation = TopPK(p=0.95, k=100)


class OptimizerChoice(_Strict):
    """AdamW; weight decay on matrices only; `clip` bounds the global gradient norm (null: off)."""

    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.1, ge=0)
    clip: float | None = Field(default=1.0, gt=0)


# Keys that may change while a run goes on: they decide how it is run and watched, not what is learned.
FREE = (
    "compile", "activation_checkpointing", "shard", "readers", "heldout", "evaluate_every", "checkpoint_every", "keep",
    "keep_every", "watch",
)  # fmt: skip


class Recipe(_Strict):
    """Everything that a run is made from; see docs/design.md section 6."""

    name: str = "run"
    seed: int = Field(default=0, ge=0)
    corpus: tuple[CorpusEntry, ...] = Field(min_length=1)
    student: StudentChoice = StudentChoice()
    teacher: TeacherChoice = NoTeacher()
    truncation: Truncation = TopPK(p=0.95, k=100)
    temperature: Temperature = Static()
    tail: Tail = Renormalise()
    loss: Loss = KLD()
    positions: Positions = All()
    alpha: Schedule = Constant(value=0.9)
    lr: Schedule
    optimizer: OptimizerChoice = OptimizerChoice()
    tokens: Count
    batch_tokens: Count
    micro_batch_rows: int = Field(default=16, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False  # torch.compile, block by block
    activation_checkpointing: bool = False  # blocks are run again in the backward pass instead of remembered
    shard: Count | None = None  # ranks that hold one copy of the student between them; None: all
    readers: Annotated[int, Field(ge=0)] | None = None  # processes that read ahead; None: one, if a core is free
    log_targets: LogTargets | None = None
    heldout: tuple[str, ...] | None = None  # corpora whose held-out rows are measured; None: the first of `corpus`
    evaluate_every: Cadence = 0.05
    checkpoint_every: Cadence = 0.1
    keep: int = Field(default=2, ge=1)  # newest checkpoints that are kept ...
    keep_every: Cadence = None  # ... beside those of every so many steps
    watch: WatchChoice = WatchChoice()

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if self.log_targets is not None:
            self._check_log(self.log_targets)
        if not self.taught:
            return self
        check_combination(loss=self.loss, tail=self.tail, temperature=self.temperature, truncation=self.truncation)
        if isinstance(self.teacher, LiveTeaching):
            if isinstance(self.temperature, StdScaled | EntropyScaled) and self.temperature.reference is None:
                raise RecipeError(
                    f"temperature {self.temperature.kind} refers to the mean of a statistic of the teacher, which a "
                    "store knows and a live teacher does not: set temperature.reference (`predistill store inspect` "
                    f"shows it as {self.temperature.mean} for any store of this teacher)."
                )
            return self
        if all(entry.store is None for entry in self.corpus):
            raise RecipeError(
                f"teacher.kind is stored, and corpus {', '.join(entry.path for entry in self.corpus)} names no store. "
                "Capture one with `predistill capture`, and name it as corpus[].store."
            )
        return self

    def _check_log(self, log: LogTargets) -> None:
        if len(self.corpus) > 1:
            raise RecipeError(
                f"log_targets: a store is of one corpus, and this recipe mixes {len(self.corpus)}. Train on one, or "
                "capture the finished run with `predistill capture`."
            )
        if isinstance(log.truncation, Full):
            raise RecipeError(
                "log_targets.truncation is full, and a store keeps a part of every distribution: use top_p_k."
            )
        if isinstance(log.truncation, Sampled) and log.truncation.proposal_temperature != 1:
            raise RecipeError(
                f"log_targets.truncation.proposal_temperature is {log.truncation.proposal_temperature:g}; draws are "
                "logged from the student itself: use 1."
            )
        if not self.logged_steps:
            raise RecipeError(
                f"log_targets: no step lies between from_frac {log.from_frac:g} and to_frac {log.to_frac:g} of "
                f"{self.steps:,} steps. Widen the slice."
            )

    @property
    def taught(self) -> bool:
        """Whether there is a teacher."""
        return not isinstance(self.teacher, NoTeacher)

    @property
    def steps(self) -> int:
        """Optimizer steps: ceil(tokens / batch_tokens)."""
        return math.ceil(self.tokens / self.batch_tokens)

    @property
    def logged_steps(self) -> range:
        """The steps (from 0) whose rows `log_targets` writes; empty without it."""
        if self.log_targets is None:
            return range(0)
        return range(round(self.log_targets.from_frac * self.steps), round(self.log_targets.to_frac * self.steps))

    def every(self, cadence: int | float | None) -> int | None:
        """A cadence in steps: a fraction is a share of the run, at least one step; a whole number is itself."""
        if cadence is None:
            return None
        share = isinstance(cadence, float) and cadence <= 1
        return max(1, round(cadence * self.steps)) if share else round(cadence)

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain data, with every default filled in: what a run directory keeps."""
        return self.model_dump(mode="json", by_alias=True)


def read_recipe(source: str | Path | dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML file (or of plain data), with overrides such as `lr.peak=1e-3` or `alpha.kind=wsd`.

    Raises RecipeError: which key, what was found, what is allowed.
    """
    where = "recipe" if isinstance(source, dict) else str(source)
    content = source if isinstance(source, dict) else load_settings(Path(source))
    for override in overrides:
        content = overridden(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{where}: {sentence(error, Recipe)}") from None
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
