# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
MERGEKIT := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sculpt/mergekit

.PHONY: demo test check torture bench mergekit-venv clean help

help:  ## Say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,demo,images,parquet,plots,train]'
	touch $@

demo: .venv/ready  ## Fine-tune a real model, repair it, and compare: about six minutes
	$(BIN)/sculpt demo

test: .venv/ready $(MERGEKIT)/ready  ## Run every test, those of agreement with mergekit included
	$(BIN)/python -m pytest -q -n auto

check: .venv/ready  ## Lint (the release workflow too), check types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/actionlint docs/release-workflow.yml

torture: .venv/ready  ## Attack every reader for ten minutes; counts are in docs/guarantees.md
	$(BIN)/python tests/attacks/fuzz.py --seconds 600

bench: .venv/ready  ## Measure the fuse against the disk and against mergekit
	$(BIN)/python benchmarks/fuse.py

mergekit-venv: $(MERGEKIT)/ready  ## Give mergekit an environment of its own, for the tests of agreement with it

$(MERGEKIT)/ready:
	$(PYTHON) -m venv $(MERGEKIT)
	$(MERGEKIT)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(MERGEKIT)/bin/python -m pip install --quiet mergekit==0.1.5 transformers==5.23.0 safetensors==0.8.0
	touch $@

clean:  ## Remove what make made
	rm -rf .venv build *.egg-info
