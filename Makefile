# `make up` and `make test` are all that a newcomer needs; both make .venv and install into it first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JS := tests/compat/js
# On a machine without an NVIDIA GPU, PyPI's Linux wheels of torch are CUDA builds of several GB; README says more.
PIP_ARGS ?=

.PHONY: up test gpu lint format clean

up: $(VENV)/.installed
	$(BIN)/falctl up $(ARGS)

# A test that starts real processes (marker `process`) and fails is run once more, since a busy machine may lose one race;
# each that was is listed at the end with what it failed with, and should be mended. RERUNS=0 hunts for them; a test that
# hung is not run again, nor is any other test.
RERUNS ?= 1
# Without ARGS the tests of core and board run in the gate alone.
TESTS := $(if $(ARGS),$(ARGS),--ignore=tests/core --ignore=tests/board)

# Most tests start real processes and wait for them, so a few at a time, in the order of tests/conftest.py; then the gate:
# every branch of core and board, with one fixed choice of hypothesis's examples, so that it does not hang on luck.
test: $(VENV)/.installed-test $(VENV)/fal-1.60/.installed $(JS)/node_modules/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder \
	  --reruns $(RERUNS) --rerun-show-tracebacks $(TESTS)
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 $(BIN)/coverage run --source falctl/core,falctl/board -m pytest -q -n logical --dist worksteal \
	  --reruns $(RERUNS) --hypothesis-seed=0 tests/core tests/board
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --fail-under=100

# What only a machine with a card can tell, in nine minutes; the log and the figures are in on_card/.
gpu: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks.on_card $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(JS)/node_modules build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "falctl needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --disable-pip-version-check -q $(PIP_ARGS) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --disable-pip-version-check -q $(PIP_ARGS) -e '.[test]'
	@touch $@ $(VENV)/.installed

# fal's JavaScript client; without Node and npm its tests are skipped, and say so.
$(JS)/node_modules/.installed: $(JS)/package-lock.json
	@if command -v node >/dev/null && command -v npm >/dev/null; then \
	  npm ci --prefix $(JS) --no-audit --no-fund --loglevel=error && touch $@; \
	else echo "node or npm is not on PATH: the tests of fal's JavaScript client will be skipped"; fi

# The oldest SDK of fal that we serve, in an environment of its own: it wants an older FastAPI.
$(VENV)/fal-1.60/.installed: tests/compat/fal-1.60.txt | $(VENV)/bin/python
	$(BIN)/python -m venv $(VENV)/fal-1.60
	$(VENV)/fal-1.60/bin/pip install --disable-pip-version-check -q -r tests/compat/fal-1.60.txt
	@touch $@
