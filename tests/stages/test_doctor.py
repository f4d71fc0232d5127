"""The doctor finds what is missing and what is broken, says how to mend it, and names nobody."""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from predistill.stages import doctor as stage
from predistill.stages import selfcheck
from predistill.stages.doctor import doctor, in_words, requirements, warnings
from predistill.stages.selfcheck import checked, self_checks
from tests.made import Ended

MACHINE: dict[str, Any] = {
    "cores_usable": 4, "threads": 4, "cxx": True, "shm_bytes": 8 << 30, "disk_free_bytes": 100 << 30
}  # fmt: skip
DEVICES: dict[str, Any] = {"cuda": [], "nccl": None}


def test_where_all_that_is_needed_is_here_it_says_so_and_exits_0(call: Callable[..., Ended]) -> None:
    ended = call("doctor", "--json")
    facts = json.loads(ended.out)
    assert (ended.code, ended.err) == (0, "")
    assert facts["ok"]
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["machine"]["threads"] == torch.get_num_threads()
    assert all(check["ok"] for check in facts["checks"])
    assert sum(check["seconds"] for check in facts["checks"]) < 5
    words = call("doctor").out
    assert words.rstrip().endswith("All that is needed is here.")
    assert torch.__version__ in words


def test_nothing_tells_whose_machine_it_is(
    call: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _fd: (_ for _ in ()).throw(PermissionError(13, "denied", str(tmp_path))))
    ended = call("doctor")
    assert ended.code == 2
    assert (
        "To be mended\n  write, fsync, rename in this directory: PermissionError: [Errno 13] denied: 'DIR'."
        in ended.out
    )
    user = getpass.getuser()
    for name in (socket.gethostname(), str(tmp_path), str(Path.home()), f"/{user}", f" {user} "):
        assert name not in ended.out


def test_it_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert all(check["ok"] for check in self_checks())
    assert list(tmp_path.iterdir()) == []
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("name", "broken", "says"),
    [
        ("linear_distill_loss", lambda *a, **k: _scaled(*a, **k), "value or gradient is 0.01 off"),
        ("decode_into", lambda *_, **__: None, "values come back changed"),
        ("write_atomic", lambda path, _data: path.write_bytes(b"other"), "what was written is not what is read"),
    ],
)
def test_a_part_that_is_broken_is_found(monkeypatch: pytest.MonkeyPatch, name: str, broken: Any, says: str) -> None:
    monkeypatch.setattr(selfcheck, name, broken)
    (failed,) = [check for check in self_checks() if not check["ok"]]
    assert says in failed["says"]
    facts = doctor()
    assert not facts["ok"]
    assert facts["problems"] == [f"{failed['name']}: {failed['says']}."]
    assert in_words(facts).endswith("Something that is needed is not.")


def _scaled(*arguments: Any, **settings: Any) -> Any:
    from types import SimpleNamespace

    from predistill.objective import linear_distill_loss

    return SimpleNamespace(total=1.01 * linear_distill_loss(*arguments, **settings).total)


def test_a_check_that_raises_is_an_answer() -> None:
    def broken() -> str:
        raise OSError(28, "No space left on device")

    found = checked({"disk": broken, "other": lambda: "works"})
    assert [(check["name"], check["ok"], check["says"]) for check in found] == [
        ("disk", False, "OSError: [Errno 28] No space left on device"),
        ("other", True, "works"),
    ]


def test_what_is_missing_or_too_old_comes_with_the_line_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (
        "torch>=99.5", "numpy>=2.0", "nobody-has-this>=1.5", "tensorboard>=2.17; extra == 'track'",
        "nor-this>=1; extra == 'track'", "pytest; extra == 'dev'",
    )  # fmt: skip
    needed, extras = requirements(lines)
    assert needed["nobody-has-this"] == (None, "1.5")
    assert needed["torch"] == (torch.__version__, "99.5")
    assert extras["track"][-1] == "nor-this"
    assert "dev" not in extras
    monkeypatch.setattr(stage, "requires", lambda _name: lines)
    facts = doctor()
    assert not facts["ok"]
    assert facts["problems"] == [
        f"torch {torch.__version__}: predistill needs torch 99.5 or later. `pip install 'torch>=99.5'`.",
        (
            "nobody-has-this is missing: predistill needs nobody-has-this 1.5 or later. "
            "`pip install 'nobody-has-this>=1.5'`."
        ),
    ]
    assert "nor-this: pip install 'predistill[track]'" in in_words(facts)


def test_a_machine_without_fault_has_no_warning() -> None:
    assert warnings(MACHINE, DEVICES, {"triton": None}) == []


@pytest.mark.parametrize(
    ("machine", "devices", "says"),
    [
        ({"threads": 64}, {}, "Set OMP_NUM_THREADS=4."),
        ({"cxx": False}, {}, "No C++ compiler"),
        ({"shm_bytes": 64 << 20}, {}, "/dev/shm has 0.1 GiB"),
        ({"disk_free_bytes": 1 << 30}, {}, "1.0 GiB are free"),
        ({}, {"cuda": [{"name": "Tesla V100", "bf16": False}], "nccl": "2.27.0"}, "Tesla V100 has no bf16"),
        ({}, {"cuda": [{"name": "H100", "bf16": True}]}, "no NCCL"),
    ],
)
def test_what_could_work_better_is_said_with_what_to_do(
    machine: dict[str, Any], devices: dict[str, Any], says: str
) -> None:
    (warning,) = warnings(MACHINE | machine, DEVICES | devices, {"triton": "3.9.0"})
    assert says in warning
