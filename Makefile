PYTHON ?= python3
VENV ?= .venv
DEMO_ARGS ?=
BENCH_ARGS ?=
TESTS ?=
BIN := $(VENV)/bin

# One thread a worker: those of several workers wait for each other, five times as long in k-means.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --dist loadgroup --no-loadscope-reorder

.PHONY: demo check test release-check bench clean

demo: $(BIN)/moe-search
	$(BIN)/moe-search demo $(DEMO_ARGS)

check: $(BIN)/pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy & types=$$!; $(PYTEST) -m "not slow" $(TESTS) && wait $$types

# While mypy has one processor, the kernels of problems run as plain Python on another.
test: $(BIN)/pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy & types=$$!; NUMBA_DISABLE_JIT=1 OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/problems && wait $$types
	$(PYTEST) $(TESTS)

release-check: test
	MOE_SEARCH_CLEAN_INSTALL=1 $(BIN)/pytest -q tests/test_distribution.py

bench: $(BIN)/benchopt
	$(BIN)/python -m moe_search.bench.speed $(BENCH_ARGS)

clean:
	rm -rf $(VENV) problems/__pycache__ build dist *.egg-info

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
