# `make repro` and `make test` need only Python >= 3.11, git and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
# Stages run as `python -m stages.NAME`: this makes that the environment's Python.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help setup repro test test-gpu check fix

help:
	@echo "make repro   set up .venv and run the pipeline of params.yaml from raw data to report/index.html"
	@echo "make test    set up .venv and run the tests (PYTEST_ARGS='-k phantom' to choose)"
	@echo "make test-gpu   the same for stylegan2/ with the compiled operations on a CUDA GPU"
	@echo "make check   ruff and mypy; make fix lets ruff mend what it can"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Error: $(PYTHON) is `$(PYTHON) --version`; VesselForge needs Python >= 3.11 (make PYTHON=python3.12 ...)"; exit 2; }
	@echo "Setting up $(VENV): one or two minutes and 2 GB."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@# A ZIP download has no .git; DVC must be told, or it stops.
	@test -e .git || dvc config --local core.no_scm true
	@touch $@

repro: setup
	python -m stages.validate
	dvc repro
	@echo "Open report/index.html; see 'dvc metrics show'; commit dvc.lock metrics plots, then 'dvc metrics diff' compares (. $(VENV)/bin/activate first)."

# A process for each core, four at most: more would wait for the file of the whole graph, the longest.
test: setup
	python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# Everything in tests/stylegan2; tests of operations and networks run on CUDA tensors as well.
test-gpu: setup
	@python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || \
	  { echo "Error: no GPU: torch sees no CUDA device, so nothing was tested; 'stylegan2 doctor' says more"; exit 2; }
	STYLEGAN2_OPS=cuda python -m pytest tests/stylegan2 $(PYTEST_ARGS)

check: setup
	ruff check .
	ruff format --check .
	mypy
	python -m stages.validate params.yaml presets/*.yaml
	python -m stages.closure

fix: setup
	ruff check --fix .
	ruff format .
