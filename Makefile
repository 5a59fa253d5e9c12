# Everything runs in a virtual environment that this file makes; all it needs is python3 with venv, make and a
# C++20 compiler. cmake, ninja and clang-format come from PyPI.

PYTHON ?= python3
VENV ?= .venv

BIN := $(abspath $(VENV))/bin
TOOLS := $(VENV)/.cmake-installed
STAMP := $(VENV)/.histo-export-installed
CPP := $(shell find cpp benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.c' -o -name '*.inl')

export PATH := $(BIN):$(PATH)

# ccache, where it is installed and may write to its folder, compiles a file once for all build folders that compile
# it with the same options, and for other clones of this repository.
CCACHE := $(shell folder=$$(ccache --get-config cache_dir 2>/dev/null) && mkdir -p "$$folder" 2>/dev/null && \
            test -w "$$folder" && echo ccache)
ifneq ($(CCACHE),)
export CCACHE_DIR := $(shell ccache --get-config cache_dir)
export CMAKE_C_COMPILER_LAUNCHER ?= ccache
export CMAKE_CXX_COMPILER_LAUNCHER ?= ccache
export CCACHE_BASEDIR := $(CURDIR)
export CCACHE_NOHASHDIR := true
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all cpp-test cpp-test-arm python-test python-test-all sanitize sanitize-all bench lint clean

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 25

demo: $(STAMP)  ## train on the built-in demo tiles and export the model with pool 2
	@echo "Train a ResNet34 with a 2 x 2 pooled head on synthetic tiles, export it, check every file:"
	histo-export --pool 2 --force

# Two jobs: pytest leaves half of two CPUs idle, which the rest then uses.
TOGETHER := @$(MAKE) --no-print-directory --output-sync=target -j2

test:  ## what every change must pass: pytest, the C++ tests and lint
	$(TOGETHER) python-test cpp-test lint

test-all:  ## the same with the tests marked slow, all tests under all sanitizers, and those on emulated Arm CPUs
	$(TOGETHER) python-test-all cpp-test cpp-test-arm sanitize-all lint

# Two processes, a file at a time: tests of one file share what is costly to make. Threads of OpenMP that wait must not
# take the CPU from the other process. Plain `pytest tests` does the same in one process.
PYTEST = OMP_WAIT_POLICY=passive pytest $(1) -n 2 --dist loadfile tests benchmarks --benchmark-disable

python-test: $(STAMP)  ## pytest without the tests marked slow; benchmarks run once, untimed
	$(call PYTEST,-m "not slow")

python-test-all: $(STAMP)  ## pytest with them
	$(call PYTEST)

# MAKEFLAGS= because ninja would look for the pipe of make -j and complain that it is closed.
BUILD = cmake --preset $(1) -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja >/dev/null && MAKEFLAGS= cmake --build --preset $(1)

cpp-test: $(TOOLS)  ## build the C++ tests with warnings as errors in build/dev and run them (needs doctest)
	$(call BUILD,dev)
	ctest --preset dev

# Three CPUs, so that each choice of kernels is tried: all extensions, DOTPROD alone, none.
cpp-test-arm: $(TOOLS)  ## the C++ tests for Linux on AArch64, under qemu-user (needs doctest, a cross compiler, qemu)
	@if command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null; then \
	  set -e; $(call BUILD,arm); \
	  for cpu in arm arm-neoverse-n1 arm-cortex-a72; do ctest --preset $$cpu; done; \
	else echo "The tests on Arm are skipped: install g++-aarch64-linux-gnu and qemu-user."; fi

sanitize: $(TOOLS)  ## the C++ tests with sanitizers, with the portable and the AVX2 kernels alone
	$(call BUILD,asan)
	ctest --preset asan
	$(call BUILD,tsan)
	ctest --preset tsan

sanitize-all: $(TOOLS)  ## the same with all kernels
	$(call BUILD,asan-all)
	ctest --preset asan-all
	$(call BUILD,tsan)
	ctest --preset tsan

bench: $(STAMP)  ## time the benchmarks
	pytest benchmarks

lint: $(STAMP)  ## ruff, import-linter, mypy, clang-format and codespell, changing nothing
	ruff check
	ruff format --check
	lint-imports --no-cache
	mypy
	clang-format --dry-run -Werror $(CPP)
	codespell *.md *.toml Makefile CMakeLists.txt benchmarks cpp docs python tests

clean:  ## remove what was built (the virtual environment stays)
	rm -rf build dist .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -f $(STAMP) $(TOOLS)

$(TOOLS):
	@test -x $(BIN)/python || $(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "$(PYTHON) cannot make a virtual environment: its venv or ensurepip module is missing." \
	       "Install it (Debian, Ubuntu: apt install python3-venv) or name another one: make PYTHON=..." >&2; \
	  exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check cmake ninja pybind11 scikit-build-core
	@touch $@

# Editable, so that tests import the tree as it is; the C++ sources are dependencies because the module is not
# rebuilt on import. Where nothing but those changed, the packages that it needs are there.
$(STAMP): pyproject.toml CMakeLists.txt $(CPP) | $(TOOLS)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation \
	  -C cmake.define.HISTO_DEVELOPER_MODE=ON $(if $(filter pyproject.toml,$?),-e '.[dev]',--no-deps -e .)
	@touch $@
