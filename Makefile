# make quickstart   a single network against a deep ensemble, in minutes on two cores
# make test         all tests;  make test-fast  those that take seconds
# make test-tpu     what the TPU compiler says, without a TPU (Linux; installs libtpu)
# make test-cloud   workdirs in buckets, on servers of this machine
# make lint         ruff;  make types  mypy on the library
# make docs         tables in the docs, and the site: build/site/index.html
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-fast test-tpu test-cloud lint types docs clean

$(VENV)/installed: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

quickstart: $(VENV)/installed
	$(BIN)/python -m experiments.quickstart

test: $(VENV)/installed
	$(PYTEST)

test-fast: $(VENV)/installed
	$(PYTEST) -m "not slow"

test-tpu: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[test,tpu]'
	$(BIN)/python -m pytest -m tpu

test-cloud: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[test,cloud-test]'
	$(BIN)/python -m pytest tests/cloud

lint: $(VENV)/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

docs: $(VENV)/installed
	$(BIN)/python -m tools.docs
	$(BIN)/python -m benchmarks.page
	$(BIN)/python -m pip install --quiet --editable '.[test,docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

clean:
	rm -rf $(VENV) .cache build/site runs/quickstart
