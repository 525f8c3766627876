# `make setup` makes .venv with everything; the other targets call it first, so each is one command on a fresh clone.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-containerd test-runtimes test-kernels lint bench bench-peers proto

setup:
	@PYTHON='$(PYTHON)' tools/setup

demo: setup
	@$(BIN)/snapshotter demo

test: lint
	$(BIN)/pytest $(PYTEST)

test-containerd: setup
	$(BIN)/pytest tests/containerd --containerd all --buildkit

test-runtimes: setup
	$(BIN)/python -m tools.runtimes

test-kernels: setup
	$(BIN)/python -m tools.kernels

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks

bench-peers: setup
	$(BIN)/python -m benchmarks.peers

proto: setup
	@$(BIN)/python tools/make_messages.py src
