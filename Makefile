PYTHON ?= python3
VENV ?= .venv
DEMO_ARGS ?=
BENCH_ARGS ?=
BIN := $(VENV)/bin

# Numba's cache does not notice an edited kernel in another file, so every state of the sources gets a cache of its own.
SOURCES := $(shell find -L problems solvers bench -name '*.py' | sort | xargs cat | cksum | cut -d ' ' -f 1)
export NUMBA_CACHE_DIR ?= $(CURDIR)/.numba_cache/$(SOURCES)

.PHONY: demo test bench clean

demo: $(BIN)/moe-search
	$(BIN)/moe-search demo $(DEMO_ARGS)

test: $(BIN)/pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	NUMBA_DISABLE_JIT=1 $(BIN)/pytest -q tests/problems
	# One thread a worker: those of several workers wait for each other, five times as long in k-means.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadgroup --no-loadscope-reorder

bench: $(BIN)/benchopt
	$(BIN)/python -m moe_search.bench.speed $(BENCH_ARGS)

clean:
	rm -rf $(VENV) .numba_cache build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BIN)/moe-search: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(BIN)/benchopt: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	touch $@

$(BIN)/pytest: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
