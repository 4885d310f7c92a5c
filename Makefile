# Everything here needs only make and Python 3.11 or newer; each target does its own set-up in .venv.
# Paths are relative throughout, so the tree may lie under a directory with spaces in its name.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:

# PYTHON=... names the interpreter to build .venv with; the first of python3, python3.14 ... python3.11 otherwise.
export PYTHON

PY := .venv/bin/python
# Two workers: most tests wait for processes and disks. A file stays on one worker, so its shared cluster starts once.
PYTEST_WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=

.PHONY: help setup demo test check static lint types imports docs format bench campaign clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: ## Make .venv with everything in it (done once per change of pyproject.toml)
	@sh tools/setup.sh

demo: setup ## Run the five-minute tour: three nodes, six daemons, a drain, an audit
	@.venv/bin/net demo tour --output pretty

test: setup ## Run the tests (PYTEST_ARGS="-k drain" narrows them)
	@$(PY) -m pytest -n $(PYTEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

check: static test ## Everything that must hold before a commit: static checks, then the tests

static: lint types imports docs ## The checks that run no test

lint: setup ## Style, formatting, undocumented public names
	@echo "== ruff" && $(PY) -m ruff check . && $(PY) -m ruff format --check .

types: setup ## mypy --strict over the packages, tests, benchmarks and tools
	@echo "== mypy" && $(PY) -m mypy --strict

imports: setup ## The rooms of ARCHITECTURE.md: who may import whom
	@echo "== import contracts" && .venv/bin/lint-imports --no-logo

docs: setup ## Dead links, placeholders and names of this machine in the texts
	@echo "== docs" && $(PY) -m tools.check_docs

format: setup ## Mend what ruff can mend by itself
	@$(PY) -m ruff check --fix . && $(PY) -m ruff format .

bench: setup ## Measure the budgets, each beside its comparison (BENCH_ARGS="cli redex" narrows them)
	@$(PY) -m bench --out bench/out $(BENCH_ARGS)

campaign: setup ## The long versions of the reliability suites
	@$(PY) -m pytest -m campaign --timeout 0 $(PYTEST_ARGS)

clean: ## Remove the virtual environment, caches and measurements
	rm -rf .venv .setup.lock .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .grimp_cache dist build bench/out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
