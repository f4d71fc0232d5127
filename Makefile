# `make` alone lists the targets. A bare machine needs Python 3.11 and make: the first target that needs the environment builds it.

PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt
# Stamps: what .venv holds is as new as the two files that say what it should hold.
BASE := .venv/base.stamp
DEV := .venv/dev.stamp

.DEFAULT_GOAL := help
.PHONY: help venv quickstart test check fmt torture bench gpu-check docs chromium

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/bin/python:
	$(PYTHON) -m venv .venv

$(BASE): pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[dev]'
	@touch $@ $(BASE)

venv: $(DEV) ## create .venv with everything the tests need

quickstart: $(BASE) ## the whole path on the embedded text and teacher: two students, an evaluation, report.html
	$(BIN)/predistill quickstart

test: check ## check, then the tests that take seconds
	$(BIN)/python -m pytest -q -n logical -m "not slow"

check: $(DEV) ## format, lint, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(DEV) ## format, and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

torture: $(DEV) ## the long kill, flip and soak runs
	$(BIN)/python -m pytest -q -m slow

NOT_BENCHMARKS := $(addprefix benchmarks/,arms.py corpora.py invented.py peers.py record.py trainers.py turns.py) $(wildcard benchmarks/store*.py)

bench: $(DEV) ## every script of benchmarks/ (store.py wants a --work folder: run it by itself); each writes benchmarks/results/
	@set -e; for script in $(filter-out $(NOT_BENCHMARKS),$(wildcard benchmarks/*.py)); do echo "$$script"; $(BIN)/python "$$script"; done

# On a borrowed machine with a GPU there is often no .venv, and no network to make one: GPU_PYTHON=python3 takes what it has.
GPU_PYTHON ?= $(BIN)/python

gpu-check: ## on a machine with a GPU: the kernels' tests, the loss benchmark, the precision table, the step; at most 10 minutes
	PYTHONPATH=src $(GPU_PYTHON) -m pytest -q -p no:cacheprovider -W default --confcutdir=tests/objective tests/objective/kernels/test_triton_rows.py
	PYTHONPATH=src $(GPU_PYTHON) -m pytest -q -p no:cacheprovider -W default --confcutdir=tests/objective tests/objective/test_head.py -k triton
	PYTHONPATH=src $(GPU_PYTHON) benchmarks/loss.py --rounds 4
	PYTHONPATH=src $(GPU_PYTHON) benchmarks/precision.py
	PYTHONPATH=src $(GPU_PYTHON) benchmarks/gpu.py

docs: $(DEV) ## write again the parts of docs/ that are generated from the code
	@set -e; for script in docs/*.py; do echo "$$script"; $(BIN)/python "$$script"; done

chromium: ## a headless browser for the report's tests, where there is none (Debian, as root)
	@command -v chromium > /dev/null || { \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium > /dev/null; }
