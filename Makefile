# Every target makes what it needs, .venv included. Extra flags go through ARGS, as in: make demo ARGS="--seed 1".

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
JOBS   ?= 2

# TORCH=cpu: a new .venv gets the build without CUDA, a tenth of the size. Its index, unless TORCH_INDEX names another:
TORCH_INDEX ?= $(if $(filter cpu,$(TORCH)),https://download.pytorch.org/whl/cpu)

BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
FAST    := not slow and not browser and not slurm
FLOOR   := $(VENV)-floor
LOWEST  := $(VENV)-lowest
COLAB   := plotly==5.24.1 ipywidgets==7.7.1 ipykernel==6.17.1 ipython==7.34.0 anywidget==0.9.21
SLOW    := slow and not browser and not slurm
# A thread for each of JOBS test processes: threads of two that share a core wait for each other, spinning.
ALONE   := OMP_NUM_THREADS=1
ROOT    := $(if $(filter 0,$(shell id -u)),--allow-root)# JupyterLab refuses to run as root, the only user of many containers
RECENT  := import sys; print(sys.version_info >= (3, 11))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test slow test-browser test-slurm test-floor test-lowest gallery gpu-check lab dashboard workshop book lint format clean distclean

help:  ## list these targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.base  ## play the game on real images: teacher, plain student, student after AdaDFQ
	$(BIN)/adadfq demo $(ARGS)

test: lint  ## lint, types, then every test that is not slow, in JOBS=2 processes
	$(ALONE) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "$(FAST)" $(ARGS)

slow: $(VENV)/.dev  ## the tests that take minutes
	$(BIN)/python -m pytest -m "$(SLOW)" $(ARGS)

test-browser: $(VENV)/.browser chromium  ## the widgets in JupyterLab in headless Chromium; screenshots in build/screenshots
	$(BIN)/python -m pytest -m browser $(ARGS)

test-slurm: $(VENV)/.dev slurm  ## a grid on a real Slurm of one node, started on this machine and stopped again
	$(BIN)/python -m pytest -m slurm $(ARGS)

test-floor: $(FLOOR)/.floor  ## the solution notebooks on the oldest notebook stack supported, Colab's
	$(FLOOR)/bin/python tests/helpers/execute_notebooks.py $(ARGS)

test-lowest: $(LOWEST)/.lowest  ## the fast tests on the lowest version of each direct dependency; downloads several GB
	$(ALONE) $(LOWEST)/bin/python -m pytest -n $(JOBS) --dist loadfile -m "$(FAST)" $(ARGS)

gallery: $(VENV)/.dev  ## draw the README's figures and the table of docs/results.md again
	$(BIN)/python -m adadfq_lab.authoring.gallery
	$(BIN)/python -m adadfq_lab.authoring.overview

gpu-check: $(VENV)/.dev  ## check one CUDA card in under eight minutes; the figures go to gpu_check.json
	$(BIN)/python -m adadfq_lab.authoring.gpu_check $(ARGS)

lab: $(VENV)/.dev  ## open JupyterLab, on this machine only
	$(BIN)/jupyter lab $(ROOT) $(ARGS)

dashboard: $(VENV)/.dashboard  ## the bounds explorer as a web page of its own, on this machine only
	$(BIN)/python -m adadfq_lab.course.dashboard $(ARGS)

workshop: $(VENV)/.dev  ## build/workshop.zip: wheel, students' notebooks, constraints; installs from a package registry
	rm -rf build/workshop build/workshop.zip && mkdir -p build/workshop
	$(BIN)/python -m hatchling build -t wheel -d build/workshop
	$(BIN)/python -m adadfq_lab.authoring.workshop build/workshop
	cd build/workshop && $(abspath $(BIN))/python -m zipfile -c ../workshop.zip ./*

book: $(VENV)/.book  ## the course as static pages in build/book/html: notebooks executed, guides, API; ARGS=--fast is quicker
	$(BIN)/python -m adadfq_lab.authoring.book $(ARGS)

lint: $(VENV)/.dev  ## ruff (notebooks included), mypy, and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove caches and builds; runs/ and the environment stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove the environment too
	rm -rf $(VENV) $(FLOOR) $(LOWEST)

# The stamps .base and .dev say what is installed; either is made again when pyproject.toml or constraints.txt is newer.
$(VENV)/.base: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(INSTALL) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(INSTALL) -e ".[notebooks,export,cluster,dev]"
	@touch $(VENV)/.base $@

$(VENV)/.browser: $(VENV)/.dev
	$(INSTALL) -e ".[notebooks,export,cluster,dev,browser,dashboard]"
	@touch $@

# Debian's Chromium, where there is none: playwright would download a browser of its own.
.PHONY: chromium
chromium:
	@if [ -n "$$CHROMIUM" ] || command -v chromium >/dev/null || command -v chromium-browser >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -q && apt-get install -y -q --no-install-recommends chromium fonts-dejavu-core; \
	else echo "no Chromium, and no right to install it: apt-get install chromium as root, or set CHROMIUM=/path/to/it"; exit 1; fi

# Debian's Slurm, where there is none. Its daemons are not started: the tests start their own, with files of their own.
.PHONY: slurm
slurm:
	@lacking=""; for name in slurmctld slurmd sbatch munged; do \
	  PATH="$$PATH:/usr/sbin" command -v $$name >/dev/null || lacking="$$lacking $$name"; \
	done; \
	if [ -z "$$lacking" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
	    apt-get install -y -q --no-install-recommends slurmctld slurmd slurm-client munge; \
	else echo "no Slurm, and no right to install it: apt-get install slurmctld slurmd slurm-client munge as root"; exit 1; fi

$(VENV)/.dashboard: $(VENV)/.dev
	$(INSTALL) -e ".[notebooks,dashboard]"
	@touch $@

$(VENV)/.book: $(VENV)/.dev
	$(INSTALL) -e ".[notebooks,export,cluster,dev,book]"
	@touch $@

# A second environment with Colab's notebook stack; everything else, torch above all, comes from the first.
$(FLOOR)/.floor: $(VENV)/.dev
	$(BIN)/python -m venv --clear $(FLOOR)
	$(FLOOR)/bin/python -m pip install --disable-pip-version-check $(COLAB) nbclient nbformat
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"), "$(CURDIR)", sep="\n")' \
	  > $$($(FLOOR)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_shared.pth
	@touch $@

# Every `NAME>=FLOOR` of pyproject.toml as `NAME==FLOOR`.
$(LOWEST)/.lowest: pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/python -m venv --clear $(LOWEST)
	grep -oE '"[A-Za-z0-9-]+>=[0-9.]+' pyproject.toml | sed 's/"//; s/>=/==/' | sort -u > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check -c $(LOWEST)/lowest.txt -e ".[notebooks,export,cluster,dev]"
	@touch $@

$(VENV)/pyvenv.cfg:
	$(if $(filter True,$(shell $(PYTHON) -c '$(RECENT)' 2>/dev/null)),,$(error $(PYTHON) is missing or older than Python 3.11; install Python 3.11 or newer and name it: make $(MAKECMDGOALS) PYTHON=python3.12))
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --disable-pip-version-check --no-deps --index-url $(TORCH_INDEX) \
	  $$(grep -E '^torch(vision)?==' constraints.txt) || { rm -rf $(VENV); exit 1; })
