"""Other people's trainers on the job of one of arms.py: its student, rows, batch and AdamW. Not a benchmark itself.

The Hugging Face Trainer learns from the text; TRL's GKDTrainer from a live teacher, with nothing generated (lmbda 0)
and forward KL (beta 0). Rows are T tokens long, as both are used: they shift the labels themselves, and learn T - 1 of
them. Nothing is logged or saved. Who is not installed is absent, with the reason.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch
from arms import LR, Arm
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments
from turns import Cost, Work, cost_of

from predistill.students.build import build_student
from predistill.teachers.load import load_teacher

Make = Callable[[Arm, dict[str, Any], TrainerCallback], Trainer]


def beside(make: Make, arm: Arm, ours: Work, *, rounds: int) -> tuple[list[Cost], list[Cost]]:
    """(costs of the trainer's steps, of `ours`), which runs between two of them. The first two are not counted."""
    turns = _Turns(ours)
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output_dir": folder,
            "max_steps": rounds + 3,
            "per_device_train_batch_size": arm.tokens // arm.inputs.corpora[0].row_len,
            "learning_rate": LR,
            "lr_scheduler_type": "constant",
            "optim": "adamw_torch_fused",
            "adam_beta1": arm.recipe.optimizer.betas[0],
            "adam_beta2": arm.recipe.optimizer.betas[1],
            "weight_decay": arm.recipe.optimizer.weight_decay,
            "max_grad_norm": arm.recipe.optimizer.clip or 0.0,
            "logging_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "dataloader_pin_memory": False,
            "seed": arm.recipe.seed,
        }
        make(arm, settings, turns).train()
    return turns.theirs[1:], turns.ours[1:]


def trainer(arm: Arm, settings: dict[str, Any], turns: TrainerCallback) -> Trainer:
    """The Hugging Face Trainer on the text."""
    return Trainer(
        _student(arm),
        TrainingArguments(**settings),
        train_dataset=range(len(arm.inputs.corpora[0])),  # type: ignore[arg-type]  # row numbers
        data_collator=_collate(arm),
        callbacks=[turns],
    )


def gkd_trainer(arm: Arm, settings: dict[str, Any], turns: TrainerCallback) -> Trainer:
    """TRL's GKDTrainer with the arm's live teacher. ImportError where TRL is not."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    corpus = arm.inputs.corpora[0]
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(corpus.tokenizer_path))  # only asked for its padding
    tokenizer.pad_token = tokenizer.eos_token = tokenizer.convert_ids_to_tokens(corpus.end_id)
    return GKDTrainer(
        _student(arm),
        load_teacher(
            arm.recipe.teacher.model, vocab_size=corpus.vocab_size, device=torch.device("cpu"), dtype=torch.float32
        ),
        GKDConfig(
            **settings, lmbda=0.0, beta=0.0, temperature=1.0, use_cpu=True, bf16=False, gradient_checkpointing=False
        ),
        data_collator=_collate(arm),
        train_dataset=Dataset.from_dict({"row": list(range(len(corpus)))}),
        processing_class=tokenizer,
        callbacks=[turns],
    )


TRAINERS: dict[str, tuple[str, Make]] = {
    "Hugging Face Trainer": ("transformers", trainer),
    "TRL GKDTrainer": ("trl", gkd_trainer),
}


def installed(package: str) -> str:
    """Its version."""
    return f"{package} {version(package)}"


def _student(arm: Arm) -> Any:
    return build_student(arm.inputs.config, seed=arm.recipe.seed, device=torch.device("cpu"))


def _collate(arm: Arm) -> Callable[[Sequence[Any]], dict[str, torch.Tensor]]:
    corpus = arm.inputs.corpora[0]

    def collate(rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        numbers = [row["row"] if isinstance(row, dict) else row for row in rows]
        ids = torch.from_numpy(corpus.rows(numbers)[0][:, :-1].copy())
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    return collate


class _Turns(TrainerCallback):
    """From the end of one step's callback to that of the next is the trainer's step; within it ours runs."""

    def __init__(self, ours: Work) -> None:
        self._ours, self._last = ours, None
        self.theirs: list[Cost] = []
        self.ours: list[Cost] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Take the trainer's time, then ours."""
        del args, control, more
        if self._last is not None:
            cpu, wall = self._last
            self.theirs.append(Cost(time.process_time() - cpu, time.perf_counter() - wall))
            self.ours.append(cost_of(self._ours, state.global_step))
        self._last = time.process_time(), time.perf_counter()
