# make            an environment in .venv/ with the tqlab command
# make sweep      perplexity of a real model under every KV-cache format
# make test       everything the gate runs
# make mutants    breaks every shader in a fixed list of ways; the tests must notice (an hour)
# make lab        the notebooks
# make notebooks  run them all and store their outputs
# PYTHON=python3.12 picks the interpreter, MODEL=name the model.

PYTHON ?= python3
MODEL ?= smollm2
BIN := .venv/bin
DEPS := pyproject.toml setup.py constraints.txt
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

.PHONY: venv sweep test lint lab notebooks mutants

venv: .venv/.installed

sweep: .venv/.installed
	$(BIN)/tqlab sweep $(MODEL) --out data/results/$(MODEL).jsonl

lab: .venv/.installed
	$(BIN)/jupyter lab notebooks

# Widget and progress cells carry metadata keep_output: false, so their outputs go.
notebooks: .venv/.installed-test
	$(BIN)/jupyter execute --inplace $(NOTEBOOKS)
	$(BIN)/nbstripout --keep-output --keep-count $(NOTEBOOKS)

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror --assume-filename=x.cpp shaders/*.metal shaders/*.h

# Without notebooks pytest would call an empty run an error.
test: lint
ifneq ($(NOTEBOOKS),)
	TQLAB_SMOKE=1 $(BIN)/python -m pytest --nbmake --nbmake-timeout=600 $(NOTEBOOKS)
endif
	$(BIN)/python -m pytest

mutants: .venv/.installed-test
	$(BIN)/python benchmarks/mutants.py --out data/results/mutants.jsonl

# Empty stamp files: a second call installs nothing.
.venv/.installed: $(DEPS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "tqlab needs Python 3.11 or newer, but $(PYTHON) is: $$($(PYTHON) -V 2>&1); try: make PYTHON=python3.11" >&2; exit 1; }
	@echo "installing tqlab into .venv/ (a few minutes the first time)"
	@$(PYTHON) -m venv .venv
	@$(PIP_INSTALL) -e .
	@touch $@

.venv/.installed-test: .venv/.installed
	@echo "installing what the tests need"
	@$(PIP_INSTALL) -e ".[test]"
	@touch $@
