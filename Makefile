# `make quickstart` trains on real data from nothing but Python and make; `make test` proves it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu

QUICK := runs/quickstart
DATA := data

.PHONY: quickstart test check lint types clean

quickstart: $(VENV)/.installed
	BIN=$(BIN) sh examples/quickstart.sh

test: $(VENV)/.installed-dev check
	$(BIN)/python -m pytest --durations=15

check: $(VENV)/.installed-dev
	$(BIN)/ruff check rec_jax kernels benchmarks tests
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[dev,tpu-aot]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist *.egg-info runs data
