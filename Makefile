# Everything runs in a virtual environment that this file makes; all it needs is python3 with venv, make and a
# C++20 compiler. cmake, ninja and clang-format come from PyPI.

PYTHON ?= python3
VENV ?= .venv

BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.histo-export-installed
CPP := $(shell find cpp benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.c' -o -name '*.inl')

export PATH := $(BIN):$(PATH)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test cpp-test sanitize bench lint clean

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(STAMP)  ## train on the built-in demo tiles and export the model with pool 2
	@echo "Train a ResNet34 with a 2 x 2 pooled head on made tiles, export it, check every file:"
	histo-export --pool 2 --force

test: lint cpp-test  ## lint, then the C++ tests, then pytest (benchmarks run once, untimed)
	pytest tests --ignore=tests/bench
	pytest benchmarks tests/bench --benchmark-disable  # apart: these tests open all runtimes in one process

# MAKEFLAGS= because ninja would look for the pipe of make -j and complain that it is closed.
cpp-test: $(STAMP)  ## build the C++ tests with warnings as errors in build/dev and run them (needs doctest)
	cmake --preset dev -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja >/dev/null
	MAKEFLAGS= cmake --build --preset dev
	ctest --preset dev

sanitize: $(STAMP)  ## the C++ tests with the address, undefined-behaviour and thread sanitizers
	cmake --preset asan -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja >/dev/null
	MAKEFLAGS= cmake --build --preset asan
	ctest --preset asan
	cmake --preset tsan -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja >/dev/null
	MAKEFLAGS= cmake --build --preset tsan
	ctest --preset tsan

bench: $(STAMP)  ## time the benchmarks
	pytest benchmarks

lint: $(STAMP)  ## ruff, mypy, clang-format and codespell, changing nothing
	ruff check
	ruff format --check
	mypy
	clang-format --dry-run -Werror $(CPP)
	codespell *.md *.toml Makefile CMakeLists.txt benchmarks cpp docs python tests

clean:  ## remove what was built (the virtual environment stays)
	rm -rf build dist .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -f $(STAMP)

# Editable, so that tests import the tree as it is; the C++ sources are dependencies because the module is not
# rebuilt on import.
$(STAMP): pyproject.toml CMakeLists.txt $(CPP)
	@test -x $(BIN)/python || $(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "$(PYTHON) cannot make a virtual environment: its venv or ensurepip module is missing." \
	       "Install it (Debian, Ubuntu: apt install python3-venv) or name another one: make PYTHON=..." >&2; \
	  exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check \
	  -C cmake.define.HISTO_DEVELOPER_MODE=ON -e '.[dev]'
	@touch $@
