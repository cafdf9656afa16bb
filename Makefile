# The commands of this project. `make` alone explains them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help run test check faults kill-test bench bench-peers lock clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/installed: requirements.lock setup.cfg setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.lock
	$(BIN)/pip install --quiet --require-hashes -r requirements-dev.lock
	@touch $@

run: $(VENV)/installed  ## Install into .venv and start the gateway; prints a curl line to paste
	@$(BIN)/gateway serve

test: $(VENV)/installed-dev  ## Run the tests (those with PostgreSQL, Redis, npm, nginx, Chromium, Firefox and a C compiler where they are installed)
	$(BIN)/python -m pytest -q

check: $(VENV)/installed-dev  ## Style, types and architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

faults: $(VENV)/installed-dev  ## Run the table of failures, and print what was measured beside each figure
	$(BIN)/python -m pytest -q tests/faults

kill-test: $(VENV)/installed-dev  ## 10,000 calls under 20 kill -9 (and 4 crashes of PostgreSQL) for each database, and 10,000 retried requests: lost, doubled, verify; some minutes
	KILL_TEST_CALLS=10000 KILL_TEST_KILLS=20 $(BIN)/python -m pytest -q tests/faults/test_28_killed_workers.py tests/faults/test_46_idempotency.py

bench: $(VENV)/installed-dev  ## Measure this gateway beside a bare nginx; about 3 minutes, on a quiet machine
	$(BIN)/python -m benchmarks

bench-peers: $(VENV)/installed-dev  ## The same with LiteLLM and Portkey, which it installs below benchmarks/build
	$(BIN)/python -m benchmarks --peers

lock: $(VENV)/installed-dev  ## Pin the newest versions that setup.cfg allows, by hash
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade --no-header --no-annotate setup.cfg requirements-build.in -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade --no-header --no-annotate --extra redis --extra test --extra check -c requirements.lock setup.cfg requirements-build.in -o requirements-dev.lock

clean:  ## Remove what was built and installed here; the data stays
	rm -rf $(VENV) build dist benchmarks/build *.egg-info
