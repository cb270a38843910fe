.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; name a newer one: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# the same versions without their hashes, for what pip cannot look up by hash: the project itself and what the wheels of
# another platform need besides; where constraints.txt was made, nothing is left of that, and CI asks no index for it
PINS := sed -n 's/ *\\$$//; /^[^ \#].*==/p' constraints.txt > $(VENV)/pins.txt
REST := $(PIP) install $(if $(CI),--no-index --no-build-isolation) -c $(VENV)/pins.txt

# a stamp per set of packages: a second run installs nothing, an edited pin installs what changed
$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	sed '/^# what tests/,$$d' constraints.txt > $(VENV)/runtime.txt
	@# a build of torch in a folder of wheels that pip knows (one without CUDA, say) goes before the index's gigabytes, which
	@# pip would take where hashes are required
	@sed -n '/^torch==/,/[^\]$$/p' constraints.txt > $(VENV)/torch.txt
	@$(PIP) install --no-index --require-hashes --no-deps -r $(VENV)/torch.txt 2>/dev/null || true
	$(PIP) install --require-hashes --no-deps -r $(VENV)/runtime.txt
	$(PINS) && $(REST) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	sed '/^# what make docs/,$$d' constraints.txt > $(VENV)/dev.txt
	$(PIP) install --require-hashes --no-deps -r $(VENV)/dev.txt
	$(REST) -e '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(PIP) install --require-hashes --no-deps -r constraints.txt
	$(REST) -e '.[docs]'
	@touch $@

.PHONY: setup
setup: $(VENV)/.dev  ## install everything into .venv, exact versions from constraints.txt by their hashes

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
check: $(VENV)/.dev  ## lint, format check and types (pre-commit runs the same)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: config-docs
config-docs: $(VENV)/.dev  ## write docs/config.md anew, from conf/, types and docstrings
	$(BIN)/python -m lightning_apps.config.reference

.PHONY: docs
docs: $(VENV)/.docs  ## build the pages into site/ (open site/index.html); a link that leads nowhere ends it
	$(BIN)/python .ci/docs

.PHONY: pictures
pictures: $(VENV)/.dev  ## train what the pictures of the pages show, and draw them anew (ARGS=location: that one, 40 s)
	@$(BIN)/python .ci/pictures $(ARGS)

.PHONY: format
format: $(VENV)/.dev  ## apply the formatter and the safe lint fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: verify
verify: $(VENV)/.runtime  ## prove on this machine: exact resume, honest loss, same results on two processes
	$(BIN)/python -m lightning_apps.verify $(ARGS)

.PHONY: bench
bench: $(VENV)/.dev  ## every experiment against its peers on this machine, side by side (ARGS=--quick: ten minutes)
	$(BIN)/python -m benchmarks $(ARGS)

.PHONY: board
board: $(VENV)/.dev  ## measure what docs/board.json lacks of the recipes of arxiv and location, and write docs/board.md
	$(BIN)/python -m benchmarks.board $(ARGS)

.PHONY: lock
lock: $(VENV)/.dev  ## renew constraints.txt, versions with hashes (ARGS=--upgrade: the newest that fit)
	.ci/lock $(ARGS)

.PHONY: audit
audit: $(VENV)/.dev  ## ask the advisory service about every pinned version
	@$(BIN)/python .ci/audit

.PHONY: wheel
wheel: $(VENV)/.dev  ## build the wheel into dist/, without a network
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

.PHONY: clean
clean:  ## remove .venv, caches, builds, site/ and prepared data; outputs/ stays
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist site *.egg-info
