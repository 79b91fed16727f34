# Everything runs in .venv, made from the PYTHON below (3.11 or newer). Both main commands can be repeated at will.
PYTHON ?= python3
VENV := .venv
BIN = $(VENV)/bin
RUN ?= runs/quick

.DEFAULT_GOAL := help
.PHONY: help demo test check lint types docs bench composition foreign adversary dist clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.example ## set up, fetch MNIST, train the VAE (minutes, see examples/mnist_vae), and build the page to play with it
	$(BIN)/python examples/mnist_vae train --recipe quick --out $(RUN)
	$(BIN)/python examples/mnist_vae evaluate --out $(RUN)
	$(BIN)/python examples/mnist_vae demo --no-serve --out $(RUN)

test: $(VENV)/.dev ## set up and run the whole test suite
	@# Three on two cores: some tests wait for processes and pages.
	$(BIN)/python -m pytest -n 3 --dist loadfile

check: $(VENV)/.dev ## a short loop: lint, types, unit tests and doctests
	$(MAKE) lint types
	$(BIN)/python -m pytest -q -n 2 --dist loadfile src tests/unit

lint: $(VENV)/.dev ## ruff
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.dev ## mypy --strict on the library and the examples
	$(BIN)/mypy --strict src
	MYPYPATH=examples $(BIN)/mypy --strict -p common -p mnist_vae -p mnist_unlearning -p oversight -p language -p topics

docs: $(VENV)/.dev ## build the documentation into site/
	$(BIN)/mkdocs build --strict --quiet
	@echo "documentation: site/index.html"

bench: $(VENV)/.dev ## run the benchmarks, one a claim, and write their tables into the documentation (about 15 minutes)
	$(BIN)/python benchmarks --docs

# With TORCH=2.8.0, in an environment of its own, with that torch (some gigabytes); the table gets what that run showed.
ifdef TORCH
composition: VENV := .venv-torch-$(TORCH)
composition: .venv-torch-$(TORCH)/.dev
else
composition: $(VENV)/.dev
endif
composition: ## run the composition tests (TORCH=2.8.0: with that torch) and write their table into the documentation
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/composition --composition-table docs/assets/composition/table.md

foreign: $(VENV)/.dev ## make each module of others' models a site, and write the table of it into the documentation
	PYTHONPATH=tests $(BIN)/python -m foreign.run

MINUTES ?= 10
adversary: $(VENV)/.dev ## look for lost masks with hypothesis, in rounds until MINUTES (10) are over
	@end=$$(($$(date +%s) + 60 * $(MINUTES))); while [ $$(date +%s) -lt $$end ]; do \
		NEW_LIVES=1 $(BIN)/python -m pytest -q tests/adversary/test_machine.py -o timeout=0 --show-capture=no || exit 1; \
	done

dist: $(VENV)/.dev ## build the sdist, and from it the wheel, into dist/
	rm -rf dist
	$(BIN)/python -m build

clean: ## remove the environment and what was built; runs/ and data stay
	rm -rf $(VENV) .venv-torch-* build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv-torch-%/.dev: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --progress-bar off -e '.[dev]' torch==$*
	@touch $@

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gradroute needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.example: pyproject.toml | $(VENV)/bin/python
	@echo "installing gradroute and the example's packages into $(VENV) (torch is large)"
	$(BIN)/python -m pip install --editable '.[example]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	@echo "installing gradroute and the development packages into $(VENV) (torch is large)"
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@ $(VENV)/.example
