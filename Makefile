# `make` prints the targets. Those that need .venv make it, or make it anew when its inputs change.

PYTHON ?= python3# what .venv is made with
JOBS ?= 2# test processes
ARGS ?=# for reproduce and bench: make reproduce ARGS=--quick

# Compiled programs are kept between runs.
JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.3
export JAX_COMPILATION_CACHE_DIR JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS

run = .venv/bin/python -m
# A file's tests stay in one process, where they share compiled functions.
pytest = $(run) pytest --numprocesses $(JOBS) --dist loadfile

.PHONY: help .venv test test-fast lint reproduce bench constraints clean
.DEFAULT_GOAL := help

help:  ## print the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1 - /p' $(firstword $(MAKEFILE_LIST))

.venv:
	@sh tools/make_venv '$(PYTHON)'

test: lint  ## lint, then every test, doctest and notebook
	$(pytest)

# Programs so small are faster made in a hurry than well.
test-fast: .venv  ## the tests not marked slow, without lint
	XLA_FLAGS="--xla_backend_optimization_level=0 $$XLA_FLAGS" $(pytest) -m "not slow"

lint: .venv  ## ruff check, ruff format --check, pyright
	$(run) ruff check .
	$(run) ruff format --check .
	$(run) pyright

reproduce: .venv  ## the experiments: rows, figures, verdicts (ARGS=--quick for a taste)
	$(run) experiments.error_feedback $(ARGS)
	$(run) experiments.elastic_constants $(ARGS)
	$(run) experiments.bound_vs_run $(ARGS)
	$(run) experiments.scheduler $(ARGS)
	$(run) experiments.hogwild $(ARGS)
	$(run) experiments.scaling $(ARGS)
	$(run) experiments.overlap $(ARGS)

bench: .venv  ## the benchmarks (ARGS=--help lists the options)
	$(run) benchmarks $(ARGS)

constraints:  ## pin the newest versions again, in constraints.txt (needs uv)
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra experiments --extra test \
		--no-annotate --custom-compile-command "make constraints" --output-file constraints.txt pyproject.toml

clean:  ## remove .venv, caches and builds
	rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
