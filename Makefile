# The commands of a working day. Everything runs in the worker's environment, .venv.
PYTHON ?= python3
BIN := .venv/bin
.PHONY: setup fmt lint type test gpu-test ci

setup:  ## make or update .venv, test tools included
	$(PYTHON) install.py --with-tests

fmt:
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

type:
	$(BIN)/basedpyright --pythonpath $(BIN)/python

test:
	$(BIN)/python -m pytest

gpu-test:
	$(BIN)/python -m pytest -m gpu

ci:
	bash .ci/run
