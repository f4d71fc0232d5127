"""What docs/scale.md says that a dry run prints is what it prints."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.made import Ended

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "scale.md"
CONSOLE = re.compile(r"```console\n\$ predistill (.*?)\n(.*?)```", flags=re.DOTALL)


def test_every_figure_is_what_its_command_prints(call: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = CONSOLE.findall(DOCUMENT.read_text(encoding="utf-8"))
    assert len(shown) == 5
    for command, printed in shown:
        assert call(*shlex.split(command)).out == printed


def test_every_key_of_the_flat_object_is_documented(
    call: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = DOCUMENT.read_text(encoding="utf-8")
    (command, _), *_ = CONSOLE.findall(text)
    for name in json.loads(call(*shlex.split(command), "--json").out):
        part = re.fullmatch("memory(_.+_)bytes", name)
        count = re.fullmatch(r"((?:capture_)?days_)\d+", name)
        word = part[1] if part else f"{count[1]}N" if count else name
        assert re.search(rf"\W{word}\W|memory{word}bytes", text), name
