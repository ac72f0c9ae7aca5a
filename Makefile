# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv first, from a lock.
# PYTHON is any Python 3.11 or newer; with your own GPU build of torch use `make gpu` once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread per test process: two cores, two processes.
PYTEST := env OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Each process takes whole files in order, so that what a file builds is built once.
TWO := -n 2 --dist worksteal

.PHONY: demo test campaigns check wheel lock newest lowest pythons format figures reproduce bench gpu clean

demo: $(VENV)/ready
	$(BIN)/interp demo --out results/demo

test: $(VENV)/ready
	$(PYTEST) $(TWO)

# Processes killed at random moments and damaged files, by the hundred, and the long notebooks: some minutes.
campaigns: $(VENV)/ready
	$(PYTEST) $(TWO) -m campaign tests

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(PYTEST) $(TWO)

# Every study of the shipped model, the figures and the report: half an hour on two cores.
reproduce: $(VENV)/ready
	$(BIN)/python -m experiments.reproduce

# The CPU part of the benchmarks and their tables; nothing else should run meanwhile: a quarter of an hour on two idle cores.
BENCHMARKS := start collect interventions perplexity attribution patching average_precision
bench: $(VENV)/ready
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name bench || exit; done
	for name in collect attribution; do $(BIN)/python -m benchmarks.$$name bench --memory || exit; done
	$(BIN)/python -m tests.campaigns.faults bench
	$(BIN)/python -m benchmarks.tables

# Draws every figure again from its CSV; needs no model.
figures: $(VENV)/ready
	$(BIN)/python figures/redraw.py

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What a user gets: the wheel, in an environment and a folder of its own.
wheel: $(VENV)/ready
	PYTHON="$(PYTHON)" sh constraints/wheel.sh $(BIN)

# The locks, with the newest of everything; then `make test`, and commit what changed.
lock: .venv-uv/bin/uv
	sh constraints/lock.sh $(CURDIR)/$<

# The newest and the lowest versions of everything, and other Pythons: results/versions has the tables.
newest lowest: .venv-uv/bin/uv $(VENV)/ready
	$(BIN)/python constraints/try_versions.py $@ --uv $<

pythons: $(VENV)/ready
	$(BIN)/python constraints/try_versions.py pythons

.venv-uv/bin/uv:
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.13"

$(VENV)/ready: pyproject.toml constraints/dev.txt
	@PYTHON="$(PYTHON)" sh constraints/install.sh $(VENV) constraints/dev.txt
	@touch $@

# Leaves torch to you: install the build for your GPU into .venv beforehand, or take pip's newest.
gpu:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e ".[dev]"
	rm -f $(VENV)/lock.txt
	touch $(VENV)/unlocked $(VENV)/ready

clean:
	rm -rf $(VENV) .venv-* results
