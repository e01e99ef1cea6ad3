# `make quickstart` trains on real data from nothing but Python and make; `make test` proves it,
# and `make test-slow` the rest.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two test processes, a file to each: compiling, which is most of it, uses one core.
# One that crashes ends the tests; it is not started again.
JOBS ?= -n 2 --dist loadfile --max-worker-restart 0

# An editable install finds `rec_jax.kernels` in kernels/ by an import hook, and only that keeps a
# top-level `kernels` away; setuptools gives every such hook a warning, which nobody can act on.
EDITABLE := PYTHONWARNINGS=ignore:::setuptools.command.editable_wheel $(BIN)/pip install --quiet --editable

.PHONY: quickstart test test-fast test-slow check gpu-aot clean

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
	$(BIN)/rec-jax train ml100k --set data.path=data/quickstart/dataset --run runs/quickstart
	$(BIN)/rec-jax evaluate runs/quickstart --baseline
	$(BIN)/rec-jax export runs/quickstart --what items --out runs/quickstart/items
	@echo
	@echo "The table says how often the last item of a user is among the first items that the"
	@echo "model, and mere popularity, put before that user; ratio is the one divided by the other."
	@echo
	@echo "curves      runs/quickstart/report.html, runs/quickstart/curves.png"
	@echo "embeddings  runs/quickstart/items (rec_jax.load_embeddings reads it)"
	@echo "next        $(BIN)/rec-jax recommend runs/quickstart --user 1"

# The tests are written for the eight devices that a CPU can pretend to have.
test test-fast test-slow: export JAX_PLATFORMS ?= cpu

test: $(VENV)/.installed-dev check test-fast

# `make test-fast PYTHON=python3.12 VENV=.venv-newest` for another JAX; TESTS: only these.
test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(JOBS) -m "not slow" --durations=15 $(TESTS)

# The long proofs: kills and damages, sanitizers, ahead-of-time compiles, wheels.
test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(JOBS) -m slow --durations=15

check: $(VENV)/.installed-dev
	$(BIN)/ruff check rec_jax kernels benchmarks tests
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	touch $(VENV)/.made-by-make
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(EDITABLE) .
	touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml
	$(EDITABLE) '.[dev,tpu-aot]'
	touch $@ $(VENV)/.installed

# What compiles the Hopper kernels without a GPU: JAX's CUDA plugin and NVIDIA's assembler, beside
# the environment and not in it, where JAX would look for a GPU.
gpu-aot: $(VENV)/.installed-dev
	version=$$($(BIN)/python -c 'import jax; print(jax.__version__)') && \
	$(BIN)/pip install --quiet --no-deps --upgrade --target .gpu-aot \
	  jax-cuda13-plugin==$$version jax-cuda13-pjrt==$$version nvidia-cuda-nvcc nvidia-cuda-nvdisasm

# Only what make made: other runs and data are the user's, and so is an environment that was
# there before.
clean:
	if [ -e $(VENV)/.made-by-make ]; then rm -rf $(VENV); fi
	rm -rf build rec_jax.egg-info runs/quickstart data/quickstart
	@for folder in runs data; do \
	  if [ -d $$folder ]; then rmdir $$folder 2>/dev/null || true; fi; done
