# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt)
# Modules are compiled when they are first imported: most of what is installed never is.
INSTALL := install --quiet --no-compile
OWN := $(wildcard constraints-$(shell uname -s | tr A-Z a-z)-$(shell uname -m).txt)
# A worker runs beside others: threads of its own would wait for one another. It takes whole files, as what a file's
# tests share is made once a worker.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile
MERGEKIT := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sculpt/mergekit

.PHONY: demo test docs zoo check torture bench mergekit-venv clean help

help:  ## Say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

.venv/ready: pyproject.toml constraints.txt $(OWN)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip $(INSTALL) $(TORCH)
	$(BIN)/python -m pip $(INSTALL) --no-deps --require-hashes $(addprefix --requirement ,constraints.txt $(OWN))
	$(BIN)/python -m pip $(INSTALL) --no-deps --no-build-isolation --editable .
	touch $@

demo: .venv/ready  ## Fine-tune a real model, repair it, and compare: about ten minutes on two cores
	$(BIN)/sculpt demo

test: .venv/ready $(MERGEKIT)/ready  ## Run every test, those of agreement with mergekit included
	$(PYTEST)

docs: .venv/ready .venv-docs/ready  ## Make the site in build/site; a dead link or anything else odd is an error
	$(BIN)/python docs/site/generate.py build/docs
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet --config-file docs/site/mkdocs.yml

.venv-docs/ready: docs/site/constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip $(INSTALL) --no-deps --require-hashes --requirement docs/site/constraints.txt
	touch $@

zoo: .venv/ready  ## Measure every architecture, tiny, against an oracle: about fifteen minutes
	$(PYTEST) --dist worksteal -m "zoo or not zoo" tests/hessian/test_zoo.py

check: .venv/ready  ## Lint (the release workflow too), check types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/actionlint docs/release-workflow.yml

torture: .venv/ready  ## Attack every reader and break every writer at every file event: hours; docs/guarantees.md has counts
	$(BIN)/python tests/attacks/fuzz.py --seconds 600
	SCULPT_TORTURE=1 $(BIN)/python -m pytest -q -s -n 0 tests/torture

bench: .venv/ready  ## Measure the fuse against the disk and against mergekit
	$(BIN)/python benchmarks/fuse.py

mergekit-venv: $(MERGEKIT)/ready  ## Give mergekit an environment of its own, for the tests of agreement with it

$(MERGEKIT)/ready:
	$(PYTHON) -m venv $(MERGEKIT)
	$(MERGEKIT)/bin/python -m pip $(INSTALL) $(TORCH)
	$(MERGEKIT)/bin/python -m pip $(INSTALL) mergekit==0.1.5 transformers==5.23.0 safetensors==0.8.0
	touch $@

clean:  ## Remove what make made
	rm -rf .venv .venv-docs build *.egg-info
