# Two commands are all a newcomer needs:
#
#   make run     the main job: a privacy-utility sweep on real data, with table, figures and page
#   make test    lint, types and tests
#
# Both create .venv when it is missing and install what they need, once.
#
#   make run FAST=1      the same steps on a small part of the sweep
#   make test-all        also the slow tests
#   make docs            the documentation site in build/docs, its notebooks executed
#   make mutation        plants mistakes in a copy of the code; the tests have to notice each
#   make test JOBS=8     in so many processes at a time (2 unless said otherwise)
#   make PYTHON=python3.12 ...   another interpreter

PYTHON ?= python3
FAST ?=
JOBS ?= 2
BIN := .venv/bin

.PHONY: run test test-all docs mutation lint clean

run: .venv/.run
	$(BIN)/fljax sweep digits_privacy_utility $(if $(FAST),--fast --out results/digits_privacy_utility_fast)

test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-all: lint
	$(BIN)/python -m pytest -m "" -n $(JOBS) --dist loadfile

docs: .venv/.docs
	$(BIN)/python docs/site/build.py --execute

mutation: .venv/.test
	$(BIN)/python tests/mutation/run.py

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

.venv/.run: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/.test: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@ .venv/.run

.venv/.docs: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	touch $@ .venv/.run

clean:
	rm -rf .venv build results .pytest_cache .ruff_cache
