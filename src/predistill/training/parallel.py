"""How a student is laid over the processes that train it, from outside, whatever its architecture.

In this order: blocks are run again in the backward pass instead of remembered, compiled, then sharded by PyTorch's
fully_shard (FSDP2). One process has nothing to shard; what is called is the same.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from predistill.errors import RecipeError
from predistill.students.blocks import blocks_of
from predistill.training.student import Student
from predistill.world import World

__all__ = ["copy_size", "own_part", "parallelised", "whole", "whole_weights"]


def copy_size(processes: int, shard: int | None) -> int:
    """Processes that hold one copy of the student between them. Raises RecipeError where copies do not fit."""
    copy = 1 if processes == 1 else shard or processes
    if processes % copy:
        raise RecipeError(
            f"shard is {copy}, and {processes} processes cannot be divided into copies of {copy}. Choose a divisor."
        )
    return copy


def parallelised(
    student: Student,
    world: World,
    *,
    shard: int | None = None,
    bf16: bool = False,
    activation_checkpointing: bool = False,
    compiled: bool = False,
) -> Student:
    """`student`, laid over the world in place.

    `shard`: so many processes hold one copy between them (HSDP where there are more; None: all of them, FSDP). `bf16`:
    weights are gathered in bfloat16; each process's share, and the sums of gradients, are float32. Gradients are summed
    over the processes, never averaged: the step divides once, by the labels of the whole window.
    Raises RecipeError where the copies do not fit the world, and for a student whose blocks cannot be run again.
    """
    blocks = blocks_of(student.model)
    if activation_checkpointing:
        if not student.model.supports_gradient_checkpointing:
            raise RecipeError(
                f"activation_checkpointing: {type(student.model).__name__} does not support it. Leave it out, or lower "
                "micro_batch_rows."
            )
        model = student.model
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # older name
        enable({"use_reentrant": False})
    if compiled:
        for block in blocks:
            block.forward = torch.compile(block.forward)
    if world.size == 1:
        return student
    copy = copy_size(world.size, shard)
    names, sizes = (("shard",), (copy,)) if copy == world.size else (("replicate", "shard"), (world.size // copy, copy))
    mesh = init_device_mesh(world.device.type, sizes, mesh_dim_names=names)
    # Inputs are left as they are: the targets' float32 log-probabilities come in through the root's forward.
    precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for module in (*blocks, student):
        fully_shard(module, mesh=mesh, mp_policy=precision)
    for module in student.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            if world.device.type == "cpu":
                module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    return student


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor that may be sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that may be sharded; every process takes part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: nn.Module, world: World) -> dict[str, torch.Tensor]:
    """The model's weights by name, whole, on the CPU of the first process; nothing on the others, who take part."""
    found = {}
    for name, tensor in model.state_dict().items():
        full = whole(tensor)
        if world.first:
            found[name] = full.cpu()
    return found
