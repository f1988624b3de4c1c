# `make run` and `make test` need git, make and Python 3.11 or newer; they set up the rest themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help run test setup lock lint types docs accuracy fit check lab clean

help: ## This list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

run: $(VENV)/run.stamp ## Set up and run `provision quickstart` on this machine
	$(BIN)/provision quickstart

test: setup lab ## Set up, install what the lab needs, run all tests
	$(BIN)/python -m pytest

setup: $(VENV)/dev.stamp ## Development environment in .venv, from the lock files

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "provision needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: pyproject.toml .ci/lock-run.txt | $(VENV)/bin/python
	$(PIP) -r .ci/lock-run.txt
	$(PIP) --no-deps -e .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml .ci/lock-dev.txt | $(VENV)/bin/python
	$(PIP) -r .ci/lock-dev.txt
	$(PIP) --no-deps -e .
	@touch $@ $(VENV)/run.stamp

lock: ## Write the lock files anew from pyproject.toml
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-lock/bin/python -m pip install --quiet '.[embedded]'
	$(VENV)-lock/bin/python -m pip freeze --exclude provision-llm > .ci/lock-run.txt
	$(VENV)-lock/bin/python -m pip install --quiet --group dev
	$(VENV)-lock/bin/python -m pip freeze --exclude provision-llm > .ci/lock-dev.txt
	rm -rf $(VENV)-lock

lab: setup ## Debian packages, root file system, engine and model of the lab (needs root; skipped with the reason without it)
	$(BIN)/python -m tests.lab.setup

lint: setup ## ruff, import contracts, ansible-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	cd playbooks && $(CURDIR)/$(BIN)/ansible-lint --offline --profile production .

types: setup ## mypy, strict
	$(BIN)/mypy

fit: setup ## Fit the speed model to the measurements: writes catalog/efficiency.toml and its report
	$(BIN)/python -m tests.accuracy.fit

docs: setup ## Regenerate help texts and tables in the README
	$(BIN)/cog -r README.md

accuracy: setup ## Measure the predictions and write docs/accuracy.md
	$(BIN)/python -m tests.accuracy.report

check: lint types test ## Everything CI runs

clean: ## Remove the environment and caches of this checkout
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache dist
