"""Laws about the package as a whole: what an import costs, and what it exports."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
import subprocess
import sys

import pytest

import predistill

HEAVY = ("torch", "transformers", "pyarrow", "matplotlib")
PACKAGES = sorted(info.name for info in pkgutil.walk_packages(predistill.__path__, "predistill.") if info.ispkg)


def loaded_by(code: str) -> set[str]:
    """The names in `sys.modules` of a fresh interpreter after it ran `code`."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('\\nMODULES', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("MODULES", 1)[1].split())


@pytest.mark.parametrize("name", ["predistill", "predistill.assets", "predistill.corpus", "predistill.store"])
def test_rooms_without_torch_load_no_heavy_package(name: str) -> None:
    loaded = loaded_by(f"import {name}")
    assert name in loaded
    assert not loaded.intersection(HEAVY)


def test_help_loads_no_torch() -> None:
    loaded = loaded_by("from predistill.cli import main; sys.argv = ['predistill', '--help']; main()")
    assert "predistill.cli" in loaded
    assert not loaded.intersection(HEAVY)


def test_help_names_every_verb() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from predistill.cli import main; main()", "--help"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for verb in ("quickstart", "prepare", "capture", "train", "evaluate", "generate", "report", "store"):
        assert verb in done.stdout


def test_there_are_packages_to_check() -> None:
    assert {"predistill.assets", "predistill.corpus", "predistill.objective", "predistill.store"} <= set(PACKAGES)


@pytest.mark.parametrize("name", ["predistill", *PACKAGES])
def test_all_is_what_a_package_exports(name: str) -> None:
    package = importlib.import_module(name)
    exported = list(getattr(package, "__all__", ()))  # a package of verbs exports nothing by itself
    assert len(set(exported)) == len(exported), "a name stands twice"
    for public in exported:
        assert getattr(package, public) is not None
    ours = {
        key
        for key, value in vars(package).items()
        if not key.startswith("_")
        and not inspect.ismodule(value)
        and str(getattr(value, "__module__", "")).startswith("predistill")
    }
    assert ours <= set(exported), f"public but not in __all__: {sorted(ours - set(exported))}"


def test_version_is_the_distribution_s() -> None:
    assert importlib.metadata.version("predistill") == predistill.__version__
