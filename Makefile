# The commands of a working day. Everything runs in the worker's environment, .venv.
PYTHON ?= python3
BIN := .venv/bin
.PHONY: setup fmt lint type test gpu-test gpu-bench ci

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

gpu-bench:  ## memory and speed on the GPU at hand, in parts that can be taken up again
	$(BIN)/python benchmarks/gpu/run.py --output gpu-bench
	$(BIN)/python benchmarks/gpu/table.py gpu-bench

ci:
	bash .ci/run
