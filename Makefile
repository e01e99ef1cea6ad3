# `make quickstart` trains on real data from nothing but Python and make; `make test` proves it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu
# Two test processes, a file to each: compiling, which is most of it, uses one core.
# One that crashes ends the tests; it is not started again.
JOBS ?= -n 2 --dist loadfile --max-worker-restart 0

.PHONY: quickstart test test-fast check clean

# The data may not be redistributed, so it is fetched; without any way to it, generated data
# takes its place.
quickstart: $(VENV)/.installed
	@rm -rf runs/quickstart
	@if $(BIN)/rec-jax fetch ml-100k --out data/quickstart/ml-100k; then \
	  $(BIN)/rec-jax prepare --config data/quickstart/ml-100k/prepare.toml \
	    --out data/quickstart/dataset --overwrite; \
	else \
	  echo "MovieLens-100K cannot be reached: generated sessions take its place"; \
	  rm -f data/quickstart/synth.parquet; \
	  $(BIN)/rec-jax synth data/quickstart/synth.parquet --users 2000 --items 2000 && \
	  $(BIN)/rec-jax prepare data/quickstart/synth.parquet --out data/quickstart/dataset \
	    --time timestamp --overwrite; \
	fi
	$(BIN)/rec-jax train configs/ml100k.toml --set data.path=data/quickstart/dataset \
	  --run runs/quickstart
	$(BIN)/rec-jax evaluate runs/quickstart --baseline
	$(BIN)/rec-jax export runs/quickstart --what items --out runs/quickstart/items
	@echo
	@echo "curves      runs/quickstart/report.html, runs/quickstart/curves.png"
	@echo "embeddings  runs/quickstart/items (rec_jax.load_embeddings reads it)"
	@echo "next        $(BIN)/rec-jax recommend runs/quickstart --user 1"

test: $(VENV)/.installed-dev check
	$(BIN)/python -m pytest $(JOBS) --durations=15

# Without the long proofs; `make test-fast PYTHON=python3.12 VENV=.venv-newest` for another JAX.
test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(JOBS) -m "not slow"

check: $(VENV)/.installed-dev
	$(BIN)/ruff check rec_jax kernels benchmarks tests
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	touch $(VENV)/.made-by-make
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[dev,tpu-aot]'
	touch $@ $(VENV)/.installed

# Only what make made: other runs and data are the user's, and so is an environment that was
# there before.
clean:
	if [ -e $(VENV)/.made-by-make ]; then rm -rf $(VENV); fi
	rm -rf build rec_jax.egg-info runs/quickstart data/quickstart
	@for folder in runs data; do \
	  if [ -d $$folder ]; then rmdir $$folder 2>/dev/null || true; fi; done
