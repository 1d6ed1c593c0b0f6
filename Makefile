# On a machine with Python >= 3.11 and make: `make demo` shows it, `make test` proves it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Towers must also load in the last release of transformers 4; it lives beside the environment, not in it.
COMPAT := .compat

.PHONY: demo test lint bench clean

demo: $(VENV)/.ready
	$(BIN)/hfcart demo

test: $(VENV)/.ready $(COMPAT)/.ready
	$(BIN)/python -m pytest --numprocesses 2

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.ready
	$(BIN)/python tests/bench/merge.py
	$(BIN)/python tests/bench/solvers.py
	$(BIN)/python tests/bench/evaluate.py
	$(BIN)/python tests/bench/sweep.py
	$(BIN)/python tests/bench/adapt.py
	$(BIN)/python tests/bench/startup.py

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(COMPAT)/.ready: tests/compat.txt $(VENV)/.ready
	rm -rf $(COMPAT)
	$(BIN)/python -m pip install --quiet --no-deps --target $(COMPAT) --requirement tests/compat.txt
	touch $@

clean:
	rm -rf $(VENV) $(COMPAT) hfcart-demo
