# Two commands on a fresh machine: `make demo` and `make test`. They need Python >= 3.11 and nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PINS    = -c constraints.txt

.PHONY: demo test check lint test-extras lab lab-small lab-vision lab-page lab-packed lab-loss lab-loss-vision features-small features bench clean

LAB     ?= lab/work
FAMILY   = $(LAB)/S

demo: $(VENV)/.core
	$(BIN)/deltasmith demo

test: $(VENV)/.test
	$(BIN)/python -m pytest

check: lint test

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tests that need torch, transformers, lm-eval, optuna or matplotlib; installs about 1.5 GB more.
test-extras: $(VENV)/.extras
	$(BIN)/python -m pytest tests/hf tests/evaluate tests/search tests/lab tests/cli tests/runtime tests/upscaling \
	  tests/distillation tests/analysis tests/features tests/formats/test_adapter_writer.py tests/kernels/test_randomised.py

# Trains one seed of the small family anew, repeats the experiments on it, and holds the figures against lab/results.
lab-small: $(VENV)/.lab
	$(BIN)/deltasmith lab build $(LAB)/small --seed 0 --jobs 2
	$(BIN)/deltasmith lab run $(LAB)/small --out $(LAB)/small/results --seed 0 --jobs 2
	$(BIN)/deltasmith lab check $(LAB)/small/results lab/results

# Everything behind docs/lab.md but the vision tasks: three training seeds, three regimes.
lab: $(VENV)/.lab
	$(BIN)/deltasmith lab build $(FAMILY) --seed 0 --seed 1 --seed 2 --jobs 2
	$(BIN)/deltasmith lab run $(FAMILY) --seed 0 --seed 1 --seed 2 --jobs 2
	$(BIN)/deltasmith lab page lab/results --out docs/lab.md

# The eight vision tasks behind docs/lab.md; see lab/README.md for what DATA holds.
lab-vision: $(VENV)/.vision
	$(BIN)/deltasmith lab vision $(DATA) $(LAB)/vision --seed 0 --seed 1 --seed 2

lab-page: $(VENV)/.lab
	$(BIN)/deltasmith lab page lab/results --out docs/lab.md

# The bundled family packed in every way, behind docs/packed.md; about ten minutes on two cores.
lab-packed: $(VENV)/.packed
	$(BIN)/deltasmith lab packed --jobs 2
	$(BIN)/deltasmith lab packed-page lab/results --out docs/packed.md

# What edits do to the loss of the bundled family, behind docs/loss.md; about a quarter of an hour on two cores.
lab-loss: $(VENV)/.loss
	$(BIN)/deltasmith lab loss --jobs 2
	$(BIN)/deltasmith lab loss-page lab/results --out docs/loss.md

# The same of the vision models that lab-vision has trained; DATA as there.
lab-loss-vision: $(VENV)/.loss $(VENV)/.vision
	$(BIN)/deltasmith lab loss --vision $(LAB)/vision/seed0 --pictures $(DATA) --jobs 2
	$(BIN)/deltasmith lab loss-page lab/results --out docs/loss.md

# The features paper's experiment on models of our own, one training seed: models, dictionaries in every mode, matching,
# the report; under a quarter of an hour on two idle cores. Figures and page stay in lab/work.
features-small: $(VENV)/.features
	$(BIN)/deltasmith lab features --work $(LAB)/features --out $(LAB)/features/features.json --jobs 2
	$(BIN)/deltasmith lab features-page $(LAB)/features/features.json --out $(LAB)/features/features.md

# Three training seeds, behind docs/features.md.
features: $(VENV)/.features
	$(BIN)/deltasmith lab features --work $(LAB)/features --seed 0 --seed 1 --seed 2 --jobs 2
	$(BIN)/deltasmith lab features-page lab/results --out docs/features.md

bench: $(VENV)/.core
	$(BIN)/python benchmarks/run.py --setup-rival --record
	$(BIN)/python benchmarks/packing.py --record

$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PINS) -e .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(BIN)/python -m pip install --quiet $(PINS) -e ".[test]"
	touch $@

$(VENV)/.extras: $(VENV)/.test
	$(BIN)/python -m pip install --quiet $(PINS) -e ".[test,eval,search,plot,lab,vision]"
	touch $@

$(VENV)/.lab: $(VENV)/.core
	$(BIN)/python -m pip install --quiet $(PINS) -e ".[lab,plot]"
	touch $@

$(VENV)/.packed: $(VENV)/.core
	$(BIN)/python -m pip install --quiet $(PINS) -e ".[hf,plot]"
	touch $@

$(VENV)/.loss: $(VENV)/.core
	$(BIN)/python -m pip install --quiet $(PINS) -e ".[analysis,plot]"
	touch $@

$(VENV)/.features: $(VENV)/.core
	$(BIN)/python -m pip install --quiet $(PINS) -e ".[features,plot]"
	touch $@

$(VENV)/.vision: $(VENV)/.core
	$(BIN)/python -m pip install --quiet $(PINS) -e ".[vision,plot]"
	touch $@

clean:
	rm -rf $(VENV) build dist demo-out $(LAB)
