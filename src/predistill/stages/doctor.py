"""predistill doctor: what this machine has for predistill, what is missing and how to get it, and whether it works."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch

from predistill import __version__
from predistill.stages.selfcheck import self_checks

__all__ = ["doctor", "in_words"]

SHOWN = ("torch", "transformers", "triton", "tokenizers", "safetensors", "numpy", "pcodec")
WANTED_SHM_BYTES = 1 << 30
FEW_BYTES_FREE = 10 << 30


def doctor() -> dict[str, Any]:
    """Versions, devices, machine, extras, self-checks, and what to do; `ok`: everything that is needed is there.

    No host, user or directory is named, so that it may be pasted into an issue. It takes a second or two.
    """
    versions: dict[str, str | None] = {"python": platform.python_version(), "predistill": __version__}
    versions |= {name: _version(name) for name in SHOWN}
    machine, devices = _machine(), _devices()
    needed, extras = requirements(_requires())
    checks = self_checks()
    problems = [
        f"{name} {found or 'is missing'}: predistill needs {name} {least} or later. `pip install '{name}>={least}'`."
        for name, (found, least) in needed.items()
        if found is None or _numbers(found) < _numbers(least)
    ]
    problems += [f"{check['name']}: {check['says']}." for check in checks if not check["ok"]]
    return {
        "ok": not problems,
        "problems": problems,
        "warnings": warnings(machine, devices, versions),
        "versions": versions,
        "devices": devices,
        "machine": machine,
        "extras": extras,
        "checks": checks,
    }


def requirements(lines: Sequence[str]) -> tuple[dict[str, tuple[str | None, str]], dict[str, list[str]]]:
    """Of the distribution's requirements: package -> (version that is here, version that is needed), and extra ->
    packages that it still wants."""
    needed: dict[str, tuple[str | None, str]] = {}
    extras: dict[str, list[str]] = {}
    for line in lines:
        name = re.match(r"[A-Za-z0-9._-]+", line)
        least = re.search(r">=\s*([0-9][0-9.]*)", line)
        extra = re.search(r"""extra == ['"](\w+)['"]""", line)
        assert name is not None
        if extra is None:
            needed[name[0]] = _version(name[0]), least[1] if least else "0"
        elif extra[1] != "dev":
            wanted = extras.setdefault(extra[1], [])
            wanted += [name[0]] if _version(name[0]) is None else []
    return needed, extras


def warnings(machine: Mapping[str, Any], devices: Mapping[str, Any], versions: Mapping[str, str | None]) -> list[str]:
    """What works, and could work better."""
    found = []
    cores, threads = machine["cores_usable"], machine["threads"]
    if threads > cores:
        found.append(f"{threads} threads on {cores} cores: they wait for each other. Set OMP_NUM_THREADS={cores}.")
    if not machine["cxx"] and not devices["cuda"]:
        found.append("No C++ compiler: recipes with `compile: true` do not run on the CPU. Install g++ or clang.")
    if devices["cuda"] and versions["triton"] is None:
        found.append("No triton: the loss runs on plain torch kernels. It comes with the CUDA build of torch.")
    if devices["cuda"] and devices["nccl"] is None:
        found.append("This torch has no NCCL: one accelerator a run. Install the CUDA build of torch.")
    if not devices["cuda"] and shutil.which("nvidia-smi"):
        found.append(
            "There is an NVIDIA driver, and torch sees no device: a CPU build of torch, a driver that is too old for "
            "it, or CUDA_VISIBLE_DEVICES is empty."
        )
    found += [
        f"{device['name']} has no bf16: use `precision: fp32`." for device in devices["cuda"] if not device["bf16"]
    ]
    if machine["shm_bytes"] is not None and machine["shm_bytes"] < WANTED_SHM_BYTES:
        found.append(
            f"/dev/shm has {_gib(machine['shm_bytes'])}: readers of stores pass rows through it. Give the container "
            "more (docker run --shm-size 8g), or set `readers: 0`."
        )
    if machine["disk_free_bytes"] < FEW_BYTES_FREE:
        found.append(f"{_gib(machine['disk_free_bytes'])} are free on this disk: checkpoints and stores want more.")
    return found


def in_words(facts: Mapping[str, Any]) -> str:
    """For people: a block a subject, what is wrong last."""
    machine, devices = facts["machine"], facts["devices"]
    lines = ["Versions", *_columns({name: found or "not here" for name, found in facts["versions"].items()})]
    shm = "" if machine["shm_bytes"] is None else f", /dev/shm {_gib(machine['shm_bytes'])}"
    lines += ["", "Machine"]
    lines += _columns(
        {
            "system": f"{machine['system']}, {machine['machine']}",
            "cores": f"{machine['cores_usable']} to use of {machine['cores']}, {machine['threads']} threads",
            "memory": f"{_gib(machine['memory_bytes']) if machine['memory_bytes'] else 'not known'}{shm}",
            "disk": f"{_gib(machine['disk_free_bytes'])} free here",
            "compiler": "C++" if machine["cxx"] else "none",
        }
    )
    lines += ["", "Devices"]
    lines += _columns(
        {
            f"cuda:{i}": f"{device['name']}, {_gib(device['memory_bytes'])}, {'bf16' if device['bf16'] else 'no bf16'}"
            for i, device in enumerate(devices["cuda"])
        }
        | {
            "cuda": devices["cuda_version"] or "a build of torch without CUDA",
            "nccl": devices["nccl"] or "none",
            "mps": "yes; predistill computes on the CPU there" if devices["mps"] else "none",
        }
    )
    lines += ["", "Extras"]
    lines += _columns(
        {
            extra: f"lacks {', '.join(missing)}: pip install 'predistill[{extra}]'" if missing else "all there"
            for extra, missing in facts["extras"].items()
        }
    )
    lines += ["", "Checks"]
    lines += [f"  {'ok  ' if check['ok'] else 'FAIL'}  {check['name']}: {check['says']}" for check in facts["checks"]]
    for title, sentences in (("Better changed", facts["warnings"]), ("To be mended", facts["problems"])):
        lines += ["", title, *(f"  {sentence}" for sentence in sentences)] if sentences else []
    return "\n".join([*lines, "", "All that is needed is here." if facts["ok"] else "Something that is needed is not."])


def _machine() -> dict[str, Any]:
    affinity = getattr(os, "sched_getaffinity", None)
    shm = Path("/dev/shm")
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cores": os.cpu_count() or 1,
        "cores_usable": len(affinity(0)) if affinity else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "shm_bytes": shutil.disk_usage(shm).total if shm.exists() else None,
        "disk_free_bytes": shutil.disk_usage(".").free,
        "cxx": any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name),
    }


def _devices() -> dict[str, Any]:
    found = []
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        with torch.cuda.device(i):
            bf16 = torch.cuda.is_bf16_supported()
        found.append({"name": device.name, "memory_bytes": device.total_memory, "bf16": bf16})
    nccl = torch.cuda.nccl.version() if found and torch.distributed.is_nccl_available() else None
    return {
        "cuda": found,
        "cuda_version": torch.version.cuda,
        "nccl": ".".join(map(str, nccl)) if nccl else None,
        "mps": torch.backends.mps.is_available(),
    }


def _memory_bytes() -> int | None:
    """Of the machine, or of the container where that is less."""
    limits = []
    try:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (AttributeError, OSError, ValueError):  # no such names, no such file, or "max"
        pass
    return min(limits, default=None)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _requires() -> Sequence[str]:
    try:
        return requires("predistill") or ()
    except PackageNotFoundError:  # run from its source folder
        return ()


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _numbers(text: str) -> tuple[int, ...]:
    """2.11.0+cpu -> (2, 11)."""
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:2])


def _columns(facts: Mapping[str, str]) -> list[str]:
    width = max(map(len, facts), default=0)
    return [f"  {name:<{width}}  {value}" for name, value in facts.items()]
