# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv first.
# PYTHON is any Python 3.11 or newer; with your own GPU build of torch use `make gpu` once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread per test process: two cores, two processes.
PYTEST := env OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo test check format figures reproduce bench gpu clean

demo: $(VENV)/ready
	$(BIN)/interp demo --out results/demo

test: $(VENV)/ready
	$(PYTEST) -n 2

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(PYTEST) -n 2

# Every study of the shipped model, the figures and the report: half an hour on two cores.
reproduce: $(VENV)/ready
	$(BIN)/python -m experiments.reproduce

# The CPU part of the benchmarks and their tables: a quarter of an hour on two idle cores.
bench: $(VENV)/ready
	$(BIN)/python -m benchmarks

# Draws every figure again from its CSV; needs no model.
figures: $(VENV)/ready
	$(BIN)/python figures/redraw.py

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/ready: pyproject.toml constraints/cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints/cpu.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

# Leaves torch to you: install the build for your GPU into .venv beforehand, or take pip's newest.
gpu:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e ".[dev]"
	touch $(VENV)/ready

clean:
	rm -rf $(VENV) results
