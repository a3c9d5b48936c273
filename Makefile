# make run: a first look, from nothing to an evaluated model. make test: lint and the whole suite. make docs: the site, in docs/_build.
# make dist: what is released.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test docs site lint format dist clean

run: .venv/cli
	$(BIN)/headstart train --config configs/quickstart.json --out runs/quickstart --overwrite --test-episodes 2000
	@echo
	@echo "Try next:  $(BIN)/headstart train --help                                 all settings"
	@echo "           $(BIN)/headstart evaluate runs/quickstart --ways 5 --shots 5  the same model with five examples each"
	@echo "           $(BIN)/headstart train --adapt last:2 --lr 0.1                adapt more than the head"

# A process for each core, with one thread each; a file's tests stay together.
test: .venv/dev lint site
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

docs: .venv/docs site
	@echo "open docs/_build/index.html"

site:
	$(BIN)/python -m sphinx -E -n -W --keep-going -q -b html docs docs/_build

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python .ci/audit.py

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The sdist and, made of it, the wheel; then the wheel in a clean environment, from a registry: minutes.
dist: .venv/dev
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m pytest -m slow tests/test_packaging.py

clean:
	rm -rf .venv runs build dist docs/_build .pytest_cache .mypy_cache .ruff_cache

.venv/%: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "headstart needs Python 3.11 or newer: make PYTHON=python3.12 $*")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@
