# `make demo` and `make test` need Python 3.11 to 3.13 and nothing else.
PYTHON ?= python3
BIN := .venv/bin
export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.jax_cache
# On a CPU two devices with half the batch each keep two cores busier than one device does. Other accelerators ignore it.
DEMO_DEVICES := JAX_NUM_CPU_DEVICES=2
# TensorFlow's start-up messages say nothing about this project.
export TF_CPP_MIN_LOG_LEVEL := 3

# Modules stay together, because their tests share what they compile.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder
# Of `make test-long`: all of it, or K/N for every N-th test from the K-th on.
PART := 0/1

.PHONY: help demo test test-fast test-long check docs format clean

help:
	@echo "make demo       train and evaluate a tiny Mask^X R-CNN on synthetic images, 5 (AVX-512) to 15 minutes on 2 cores"
	@echo "make test       the tests, about 35 minutes on 2 cores"
	@echo "make test-fast  those of them that need no long compilation, about 5 minutes"
	@echo "make test-long  what takes minutes a test: campaigns of kills, every row of the paper; PART=2/7 is a part of it"
	@echo "make docs       the pages and the reference of the package as a site, in docs/_build/html"
	@echo "make check      formatting, lint, types and import rules"

.venv/installed: requirements.txt requirements-dev.txt requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c requirements.lock
	touch $@

demo: .venv/installed
	rm -rf runs/demo
	$(DEMO_DEVICES) $(BIN)/python train.py --config=configs/demo.py --workdir=runs/demo
	$(DEMO_DEVICES) $(BIN)/python eval.py --workdir=runs/demo --output=runs/demo/scores
	@echo "results.json, metrics.json and pictures are in runs/demo/scores"

test: .venv/installed
	$(PYTEST) -m "not long"

test-fast: .venv/installed
	$(PYTEST) -m "not slow and not long"

test-long: .venv/installed
	$(PYTEST) -m long --part $(PART)

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A warning is an error: a page that nothing leads to, a docstring that cannot be read.
docs: .venv/installed
	$(BIN)/python -m sphinx --builder html --quiet --fail-on-warning --keep-going docs docs/_build/html

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf docs/_build docs/api .venv .jax_cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache runs
