# Two commands do everything on a fresh machine: `make demo` and `make test`.
.DEFAULT_GOAL := help
.PHONY: help demo test check bench clean

VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready

help:  ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(READY): requirements.lock pyproject.toml
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

demo: $(READY)  ## Diagnose the built-in demonstration
	$(VENV)/bin/thalweg diagnose

test: $(READY)  ## Run the tests
	$(PYTHON) -m pytest -n auto --dist worksteal

check: $(READY)  ## What CI runs: format, lint, types, tests
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(MAKE) test

bench: $(READY)  ## Compare with other tools, where they are installed
	for file in benchmarks/bench_*.py; do $(PYTHON) $$file || exit 1; done

clean:  ## Remove what the other commands made
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name '*.egg-info' -type d -prune -exec rm -rf {} +
