# Everything runs in .venv, made here from Python 3.11 or newer; nothing else is needed but make and internet.
# `make help` lists the targets.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.installed-docs

# The folder that the demo counts (none: Python's own library), and its options, e.g. DEMO=--exit
DIR ?=
DEMO ?=
# What to measure, e.g. BENCH="latency --json"
BENCH ?= throughput
# Seeds of the simulation
SEEDS ?= 500
# What `make coverage` runs
COVERED := tests/core tests/sim/test_scenarios.py "tests/sim/test_seeds.py::test_every_promise_holds_in_seeds_from[0]"
# Minutes of `make fuzz`
FUZZ ?= 10
# Which runs of the protocol model: nothing, deep, traces, rules, or '"built fence" "1: crash"'
MODEL ?=
# Options of the chaos harness instead of 20 minutes of a random seed, e.g. CHAOS="--seed 7 --minutes 5"
CHAOS ?=
# The repository's address on the web: links from the site to files outside docs/ lead there. None: they are plain text
REPOSITORY ?=
# Further options of pytest, e.g. PYTEST="-k ledger"
PYTEST ?=

# The tests start thousands of Python processes; without bytecode on disk each of them would compile everything again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo test slow check coverage bench bench-check fuzz sim chaos model docs docs-serve release-check clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## make .venv and install streamtask into it, with everything that tests and demo need

demo: $(INSTALLED) ## the census of a folder on a real local Kafka: DIR=folder, DEMO=--exit ends by itself
	@$(BIN)/streamtask demo $(DEMO) $(if $(DIR),"$(DIR)")

# Three at a time on two cores, for most of them wait: for sessions to end, backoffs, drains.
test: $(INSTALLED) ## the tests, on a real local Kafka
	@$(BIN)/python -m pytest -n 3 -m "not slow" $(PYTEST)

slow: $(INSTALLED) ## the rest: what takes long, other languages, containers; what is not installed is skipped and named
	@$(BIN)/python -m pytest -n 2 -m slow $(PYTEST)

check: $(INSTALLED) ## format, lint, spelling, types, and the tests that need no Kafka
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 -m "not broker and not acceptance and not slow" $(PYTEST)

# With 25 seeds of the simulation. CI counts which tests ran: this is not the run of theirs that counts.
coverage: $(INSTALLED) ## which lines and branches of the core its tests and the simulation reach; fails below the floor
	@STREAMTASK_TEST_NOTES= $(BIN)/coverage run -m pytest -q -p no:xdist $(COVERED)
	@$(BIN)/coverage report

bench: $(INSTALLED) ## measure on a real local Kafka: BENCH="throughput --json" or BENCH="latency --json"
	@$(BIN)/python -m benchmarks $(BENCH)

bench-check: $(INSTALLED) ## have the ratios to their limits fallen by 15 % since they were recorded?
	@$(BIN)/python -m benchmarks.check

fuzz: $(INSTALLED) ## every property test with new seeds, for FUZZ=10 minutes; prints what plays a find again
	@$(BIN)/python -m tests.fuzz --minutes $(FUZZ)

sim: $(INSTALLED) ## the simulation alone: SEEDS=10000
	@$(BIN)/python -m tests.sim --seeds $(SEEDS)

model: ## the protocol model, every run held to what it must give; needs cargo: MODEL=deep
	@command -v cargo >/dev/null || { echo "make model: cargo is missing; install Rust (https://rustup.rs), nothing else is needed" >&2; exit 2; }
	@cargo run --quiet --release --locked --manifest-path formal_model/Cargo.toml -- $(MODEL)

chaos: $(INSTALLED) ## break things on purpose for 20 minutes, on three real brokers: CHAOS="--seed 7 --minutes 5"
	@$(BIN)/python -m tests.chaos $(CHAOS)

release-check: $(INSTALLED) ## build sdist and wheel, and try the wheel in a fresh environment of each Python 3.11 to 3.14 that is here
	@$(BIN)/python -m tests.release

docs: $(DOCS_INSTALLED) ## build the documentation site into site/, every warning an error: REPOSITORY=https://…
	@NO_MKDOCS_2_WARNING=1 REPOSITORY="$(REPOSITORY)" $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

docs-serve: $(DOCS_INSTALLED) ## serve the documentation site on http://127.0.0.1:8000, built again when a page changes
	@NO_MKDOCS_2_WARNING=1 REPOSITORY="$(REPOSITORY)" $(BIN)/mkdocs serve --strict

clean: ## remove .venv and everything that is made again
	rm -rf $(VENV) build dist site formal_model/target .mypy_cache .ruff_cache .pytest_cache .hypothesis .streamtask .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml
	@set -e; \
	if ! $(BIN)/python -c '' 2>/dev/null; then \
	    found=; \
	    for python in python3 python3.13 python3.12 python3.11; do \
	        if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "make: none of python3, python3.13, python3.12, python3.11 is Python 3.11 or newer. Install one." >&2; exit 2; \
	    fi; \
	    echo "$(VENV): $$($$found --version)" >&2; \
	    rm -rf $(VENV); \
	    $$found -m venv $(VENV) || { \
	        echo "make: $$found cannot make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv" >&2; \
	        rm -rf $(VENV); exit 2; \
	    }; \
	fi; \
	echo "$(VENV): installing streamtask and what its tests and demo need" >&2; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --root-user-action=ignore -e '.[dev]' >&2; \
	$(BIN)/python -m streamtask.devbroker --train-aot >/dev/null || \
	    echo "$(VENV): without Java's ahead-of-time cache each broker takes 2 s longer to start" >&2; \
	touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	@set -e; \
	echo "$(VENV): installing what builds the documentation site" >&2; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --root-user-action=ignore -e '.[docs]' >&2; \
	touch $@
