# Everything a newcomer needs: `make quickstart` and `make test` work on a fresh clone with Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -q -c constraints.txt
# Two threads each in two processes slow both down many times over, so parallel tests get one thread each.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal
# all but those that train for two hours: .venv/bin/python benchmarks/bottlenecks.py, and the same with paradigms.py
BENCHMARKS := start_up quantize tutorial decoding attention dit

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all check bench clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1|/' | awk -F'|' '{printf "make %-12s %s\n", $$1, $$2}'

quickstart: $(VENV)/.installed  ## real pictures in, new pictures out: environment, data, training, runs/quickstart/report/index.html
	$(BIN)/smalti quickstart

test: $(VENV)/.installed-dev  ## the tests that take seconds, all cores
	$(TEST)

test-all: $(VENV)/.installed-dev  ## every test, the slow ones too
	$(TEST) -m ""

check: $(VENV)/.installed-dev  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-bench  ## ours, the peer and the limit in one run each; keep the machine quiet (half an hour or more)
	@set -e; for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py; done

clean:  ## remove the environment, caches and build files; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name '*.egg-info' -type d -prune -exec rm -rf {} +

# The stamps: an install runs again only when what it reads has changed.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing smalti into $(VENV) (torch is large: some minutes the first time)"
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing smalti and what its tests need into $(VENV) (torch is large: some minutes the first time)"
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e '.[bench]'
	@touch $@ $(VENV)/.installed

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { echo "smalti needs Python 3.11 or later, and there is no $(PYTHON) here: install it, or name one with make PYTHON=/path/to/python3.11 …"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "smalti needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) -V 2>&1): name another with make PYTHON=/path/to/python3.11 …"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "could not make $(VENV) with $(PYTHON): on Debian and Ubuntu, apt install python3-venv"; rm -rf $(VENV); exit 2; }
