# Every target makes what it needs, .venv included. Extra flags go through ARGS, as in: make demo ARGS="--seed 1".

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=

BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
FAST    := not slow and not browser and not slurm
SLOW    := slow and not browser and not slurm
RECENT  := import sys; print(sys.version_info >= (3, 11))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test slow lab lint format clean distclean

help:  ## list these targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.base  ## play the game on real images: teacher, plain student, student after AdaDFQ
	$(BIN)/adadfq demo $(ARGS)

test: lint  ## lint, types, then every test that is not slow
	$(BIN)/python -m pytest -m "$(FAST)" $(ARGS)

slow: $(VENV)/.dev  ## the tests that take minutes
	$(BIN)/python -m pytest -m "$(SLOW)" $(ARGS)

lab: $(VENV)/.dev  ## open JupyterLab
	$(BIN)/jupyter lab $(ARGS)

lint: $(VENV)/.dev  ## ruff (notebooks included) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove caches and builds; runs/ and the environment stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove the environment too
	rm -rf $(VENV)

# The stamps .base and .dev say what is installed; either is made again when pyproject.toml or constraints.txt is newer.
$(VENV)/.base: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(INSTALL) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(INSTALL) -e ".[notebooks,export,dev]"
	@touch $(VENV)/.base $@

$(VENV)/pyvenv.cfg:
	$(if $(filter True,$(shell $(PYTHON) -c '$(RECENT)' 2>/dev/null)),,$(error $(PYTHON) is missing or older than Python 3.11; install Python 3.11 or newer and name it: make $(MAKECMDGOALS) PYTHON=python3.12))
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
