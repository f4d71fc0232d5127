"""What a run takes, from its recipe and a few figures of its corpora: parameters, steps, FLOPs, bytes of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from predistill.errors import RecipeError
from predistill.laws import forward_flops, training_bytes, training_flops
from predistill.objective.layer import CHUNK_TOKENS
from predistill.recipe import LiveTeaching, Recipe
from predistill.teachers.load import DTYPES
from predistill.training.parallel import copy_size

__all__ = ["batch_rows", "run_sizes"]


def batch_rows(recipe: Recipe, row_len: int, *, ranks: int = 1) -> int:
    """Rows of a step. Raises RecipeError where they are not whole, or cannot be shared evenly by `ranks` processes."""
    if recipe.batch_tokens % row_len:
        near = max(row_len, round(recipe.batch_tokens / row_len) * row_len)
        raise RecipeError(
            f"batch_tokens is {recipe.batch_tokens:,}, not a multiple of the row length {row_len}. Try {near:,}."
        )
    rows = recipe.batch_tokens // row_len
    if rows % ranks:
        near = -(-rows // ranks) * ranks * row_len
        raise RecipeError(
            f"batch_tokens is {recipe.batch_tokens:,}, {rows:,} rows, which {ranks} processes cannot share evenly. "
            f"Try {near:,}, or another number of processes."
        )
    return rows


def run_sizes(
    recipe: Recipe,
    *,
    config: PretrainedConfig,
    row_len: int,
    corpus_tokens: Sequence[int],
    teacher: PretrainedConfig | None = None,
    ranks: int = 1,
    chunk_tokens: int = CHUNK_TOKENS,
) -> dict[str, Any]:
    """Parameters, steps, FLOPs and `memory_bytes` of one rank, by what they are for.

    `config` is the student's, `teacher` a live teacher's; `corpus_tokens`: the training tokens of each corpus;
    `chunk_tokens`: positions whose logits the fused loss holds at once. Experts count whole in parameters and memory,
    in FLOPs as many as a token is sent to. Raises RecipeError as `batch_rows`, and where copies do not fit the
    ranks.
    """
    student, rows = _Shape.of(config), batch_rows(recipe, row_len, ranks=ranks)
    shard = copy_size(ranks, recipe.shard)
    tokens = recipe.steps * rows * row_len
    flops = training_flops(
        matrix_parameters=student.matrix_parameters, layers=student.layers, width=student.width, row_len=row_len
    )
    memory_bytes = training_bytes(
        parameters=student.parameters,
        root_parameters=student.parameters - student.inner_parameters,
        vocab_size=config.get_text_config().vocab_size,
        layers=student.layers,
        width=student.width,
        ffn=student.ffn,
        micro_batch_tokens=min(recipe.micro_batch_rows, rows // ranks) * row_len,
        chunk_tokens=chunk_tokens,
        shard=shard,
        bf16=recipe.precision == "bf16",
        activation_checkpointing=recipe.activation_checkpointing,
    )
    taught: dict[str, Any] = {}
    if teacher is not None and isinstance(recipe.teacher, LiveTeaching):
        live = _Shape.of(teacher)
        forward = forward_flops(
            matrix_parameters=live.matrix_parameters, layers=live.layers, width=live.width, row_len=row_len
        )
        taught = {"teacher_parameters": live.parameters, "teacher_flops": tokens * forward}
        memory_bytes["teacher"] = live.parameters * DTYPES[recipe.teacher.dtype].itemsize
    return {
        "parameters": student.parameters,
        "active_parameters": student.active_parameters,
        "non_embedding_parameters": student.inner_parameters,
        "steps": recipe.steps,
        "batch_tokens": rows * row_len,
        "tokens": tokens,
        "epochs": tokens / sum(corpus_tokens),
        "flops": tokens * flops + taught.get("teacher_flops", 0),
        **taught,
        "memory_bytes": memory_bytes,
    }


@dataclass(frozen=True)
class _Shape:
    """What a model's cost depends on; `inner_parameters`: all but embedding and head; `active_parameters`: those that a
    token meets, where experts share the work."""

    parameters: int
    active_parameters: int
    inner_parameters: int
    matrix_parameters: int
    layers: int
    width: int
    ffn: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> _Shape:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        text, head = config.get_text_config(), model.get_output_embeddings().weight.numel()
        parameters = sum(p.numel() for p in model.parameters())
        experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
        idle = round(experts * (1 - _share_of_experts(text))) if experts else 0
        inner = parameters - (head if text.tie_word_embeddings else 2 * head)
        ffn = getattr(text, "intermediate_size", None) or 4 * text.hidden_size  # GPT-2 has no name for it
        if experts:
            ffn = (getattr(text, "moe_intermediate_size", None) or ffn) * int(text.num_experts_per_tok)
        return cls(
            parameters=parameters,
            active_parameters=parameters - idle,
            inner_parameters=inner,
            matrix_parameters=inner + head - idle,
            layers=text.num_hidden_layers,
            width=text.hidden_size,
            ffn=ffn,
        )


def _share_of_experts(config: Any) -> float:
    """The experts that a token is sent to, as a share of all; every architecture has its own word for their number."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    found = next((number for name in names if (number := getattr(config, name, None))), None)
    return 1.0 if found is None else int(config.num_experts_per_tok) / int(found)
