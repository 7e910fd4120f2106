PYTHON ?= python3
VENV ?= .venv
DEMO_ARGS ?=
BENCH_ARGS ?=
TESTS ?=
BIN := $(VENV)/bin

# One thread a worker: those of several workers wait for each other, five times as long in k-means.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --dist loadgroup --no-loadscope-reorder

.PHONY: demo check test docs release-check bench clean

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
	$(MAKE) docs

# The gallery is executed, warnings are errors; the page to open is docs/_build/index.html. The page of a name that is
# gone would be one.
docs: $(BIN)/pytest
	rm -rf docs/generated
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going docs docs/_build

release-check: test
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	MOE_SEARCH_CLEAN_INSTALL=1 $(BIN)/pytest -q tests/test_distribution.py

bench: $(BIN)/benchopt
	$(BIN)/python -m moe_search.bench.speed $(BENCH_ARGS)

clean:
	rm -rf $(VENV) problems/__pycache__ build dist *.egg-info docs/_build docs/auto_gallery docs/generated

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
