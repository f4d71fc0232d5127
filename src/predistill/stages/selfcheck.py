"""What `predistill doctor` tries out: each part in a fraction of a second, on values whose answer is known.

N positions   V vocabulary   D width   K kept entries
"""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
import xxhash
from torch import distributed

from predistill.files import write_atomic
from predistill.objective import TopPK, distill_loss, linear_distill_loss
from predistill.store.codec import DTYPE_NUMBERS, decode_into, encode

__all__ = ["checked", "self_checks"]

LOSS_TOLERANCE = 1e-4  # of the largest value, float32 against float32


def self_checks() -> list[dict[str, Any]]:
    """Every check: name, ok, what it says, seconds. Nothing is raised, and nothing of this machine's names is told."""
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    checks: dict[str, Callable[[], str]] = {
        **{f"fused loss = dense loss on {device}": partial(_loss, device) for device in devices},
        "store codec, there and back": _codec,
        "write, fsync, rename in this directory": _disk,
        "a process group of one (gloo)": _group,
    }
    return checked(checks)


def checked(checks: Mapping[str, Callable[[], str]]) -> list[dict[str, Any]]:
    """Run each; what one raises is its answer."""
    found = []
    for name, check in checks.items():
        started = time.perf_counter()
        try:
            ok, says = True, check()
        except Exception as error:
            ok, says = False, _nameless(f"{type(error).__name__}: {error}")
        found.append({"name": name, "ok": ok, "says": says, "seconds": round(time.perf_counter() - started, 3)})
    return found


def _loss(device: str) -> str:
    """The fused head against plain autograd over all logits: value and both gradients."""
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(64, 32, generator=generator).to(device)
    weight_VD = (0.3 * torch.randn(512, 32, generator=generator)).to(device)
    label_N = torch.randint(512, (64,), generator=generator).to(device)
    targets = TopPK(p=0.95, k=50)(3 * torch.randn(64, 512, generator=generator).to(device))
    answers = []
    for fused in (True, False):
        hidden, weight = hidden_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()
        parts = (
            linear_distill_loss(hidden, weight, label_N, targets, alpha=0.5)
            if fused
            else distill_loss(hidden @ weight.T, label_N, targets, alpha=0.5)
        )
        parts.total.backward()
        assert hidden.grad is not None
        assert weight.grad is not None
        answers.append((parts.total.detach(), hidden.grad, weight.grad))
    apart = max(float((ours - plain).abs().max() / plain.abs().max()) for ours, plain in zip(*answers, strict=True))
    if not apart <= LOSS_TOLERANCE:
        raise ValueError(f"value or gradient is {apart:.2g} off; {LOSS_TOLERANCE:g} is allowed")
    return f"at most {apart:.1g} apart"


def _codec() -> str:
    """Every width of integer that a store writes, and the two checksums on texts whose sums are published."""
    if google_crc32c.value(b"123456789") != 0xE3069283 or xxhash.xxh64_intdigest(b"") != 0xEF46DB3751D8E999:
        raise ValueError("a checksum is wrong: reinstall google-crc32c and xxhash")
    written = 0
    for dtype in DTYPE_NUMBERS:
        values = (np.arange(20_000, dtype=np.uint64) ** 2 % 251).astype(dtype)
        codec, payload = encode(values)
        back = np.empty_like(values)
        decode_into(codec, payload, dtype=dtype, out=back)
        if not np.array_equal(values, back):
            raise ValueError(f"{dtype} values come back changed: reinstall pcodec and zstandard")
        written += len(payload)
    return f"{len(DTYPE_NUMBERS)} widths, {written:,} bytes"


def _disk() -> str:
    path = Path(f".predistill-doctor-{os.getpid()}")
    try:
        started = time.perf_counter()
        write_atomic(path, bytes(1 << 16))
        if path.read_bytes() != bytes(1 << 16):
            raise ValueError("what was written is not what is read")
        return f"{1e3 * (time.perf_counter() - started):.1f} ms"
    finally:
        path.unlink(missing_ok=True)
        path.with_name(path.name + ".tmp").unlink(missing_ok=True)


def _group() -> str:
    if distributed.is_initialized():
        return "there is one already"
    in_memory = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=in_memory, rank=0, world_size=1)
    try:
        total = torch.ones(3)
        distributed.all_reduce(total)
        if total.tolist() != [1.0, 1.0, 1.0]:
            raise ValueError(f"the sum over one process is {total.tolist()}")
    finally:
        distributed.destroy_process_group()
    return "works"


def _nameless(text: str) -> str:
    """Without the names of the machine, the user and the directories: it may stand in an issue."""
    names = {str(Path.cwd()): "DIR", str(Path.home()): "~", socket.gethostname(): "HOST"}
    with suppress(KeyError, OSError):  # a user without a name
        names[getpass.getuser()] = "USER"
    for name in sorted(names, key=len, reverse=True):
        if len(name) > 1:
            text = text.replace(name, names[name])
    return " ".join(text.split())
