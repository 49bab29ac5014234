# Two commands on a fresh machine: `make demo` and `make test`. They need Python >= 3.11 and nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PINS    = -c constraints.txt

.PHONY: demo test check lint family bench test-hf clean

demo: $(VENV)/.core
	$(BIN)/deltasmith demo

test: $(VENV)/.test
	$(BIN)/python -m pytest

check: lint test

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Loads a merged model with transformers and generates from it; needs about 1 GB more.
test-hf: $(VENV)/.hf
	$(BIN)/python -m pytest tests/hf tests/cli/test_convert.py tests/evaluate tests/lab

# Trains the bundled family again, from its seeds.
family: $(VENV)/.lab
	$(BIN)/python -m deltasmith.lab.train --out family-out

bench: $(VENV)/.core
	$(BIN)/python benchmarks/run.py --setup-rival --record

$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PINS) -e .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(BIN)/python -m pip install --quiet $(PINS) -e ".[test]"
	touch $@

$(VENV)/.hf: $(VENV)/.test
	$(BIN)/python -m pip install --quiet $(PINS) -e ".[test,hf]"
	touch $@

$(VENV)/.lab: $(VENV)/.core
	$(BIN)/python -m pip install --quiet $(PINS) -e ".[lab]"
	touch $@

clean:
	rm -rf $(VENV) build dist demo-out family-out
