# Each target first runs `make setup`, which makes .venv, so that each is one command on a fresh clone.

PYTHON ?= python3
BIN := .venv/bin

# The contract, the store and the decoders, where tests must reach every line and branch.
COVERED := src/snapshotter/contract/*.py src/snapshotter/store/*.py
COVERED += src/pybtrfs/items.py src/pybtrfs/qgroup.py src/pybtrfs/size.py

.PHONY: setup demo test test-containerd test-runtimes test-kernels test-sanitized coverage fuzz lint docs
.PHONY: bench bench-peers proto manual pictures

setup:
	@PYTHON='$(PYTHON)' tools/setup

demo: setup
	@$(BIN)/snapshotter demo

test: lint
	$(BIN)/pytest -n auto --dist worksteal $(PYTEST)

test-containerd: setup
	$(BIN)/pytest tests/containerd --containerd all --buildkit

test-sanitized: setup
	$(BIN)/python -m tests.sanitized $(PYTEST)

# Without two tests: coverage imports modules that one forbids, and warns in the sub-interpreter of the other.
coverage: setup
	@$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n auto --dist worksteal $(PYTEST) tests/pybtrfs tests/snapshotter tests/fuzz \
		-k 'not test_lazy and not test_subinterpreter'
	@$(BIN)/coverage combine -q
	$(BIN)/coverage report
	@$(BIN)/coverage report --skip-covered --show-missing --fail-under 100 $(COVERED)

fuzz: setup
	$(BIN)/python -m pip install -q --group fuzz
	$(BIN)/python -m tests.fuzz $(FUZZ)

test-runtimes: setup
	$(BIN)/python -m tools.runtimes

test-kernels: setup
	$(BIN)/python -m tools.kernels

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	@PATH=$(CURDIR)/$(BIN):$$PATH; types=$$(pyright --ignoreexternal --verifytypes pybtrfs) || { echo "$$types"; exit 1; }

docs: setup
	@$(BIN)/pip install -q --group docs
	$(BIN)/sphinx-build -q -W --keep-going docs build/docs

bench: setup
	$(BIN)/python -m benchmarks

bench-peers: setup
	$(BIN)/python -m benchmarks.peers

proto: setup
	@$(BIN)/python tools/make_messages.py src

manual: setup
	@$(BIN)/python tools/make_manual.py share

pictures: setup
	@$(BIN)/python -m tools.make_pictures docs/pictures
