# Every target does its own set-up: `make demo` and `make test` are all that a fresh checkout needs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
PYTEST_ARGS ?= -n 2 --dist loadfile
INSTALLED := $(VENV)/.installed
TRITON := .venv-triton/.installed
PACKAGES := teacherfarm $(patsubst %/__init__.py,%,$(wildcard bench/__init__.py tools/__init__.py))

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH) # protoc looks for its plugin there

.PHONY: help install triton demo test test-gpu test-docker check format bench protos clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv with everything: the server, the student, export and the tools

$(INSTALLED): pyproject.toml constraints.txt tools/find_python.sh
	@[ -x $(PY) ] && $(PY) -c '' 2>/dev/null || { rm -rf $(VENV); "$$(bash tools/find_python.sh)" -m venv $(VENV); }
	@echo "Installing into $(VENV): about 6 GB, most of it PyTorch; a few minutes the first time."
	@$(PY) -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

triton: $(TRITON) ## make .venv-triton: a real Triton server for tests and benchmarks, without Docker

$(TRITON): tools/triton_environment.py constraints-triton.txt | $(INSTALLED)
	@$(PY) -m tools.triton_environment

demo: install ## train, export, serve and distil a small teacher, then label photographs
	@$(PY) -m teacherfarm.cli demo

test: install triton ## all tests that need neither a GPU nor Docker (PYTEST_ARGS="-n 2 --dist loadfile")
	@$(PY) -m pytest $(PYTEST_ARGS) -m 'not gpu and not docker'

test-gpu: install ## the tests that need an NVIDIA GPU
	@$(PY) -m pytest -m gpu

test-docker: install ## the tests that need a Docker engine
	@$(PY) -m pytest -m docker

check: install ## format, lint, types, import rules, stubs, extras: the one list of rules
	@echo "format";       $(PY) -m ruff format --check --quiet . || { echo 'Run `make format`.'; exit 1; }
	@echo "lint";         $(PY) -m ruff check --quiet .
	@echo "types";        $(PY) -m mypy $(addprefix -p ,$(PACKAGES))
	@echo "import rules"; $(VENV)/bin/lint-imports --no-logo
	@echo "stubs";        $(PY) -m teacherfarm.protos.generate --check
	@echo "extras";       $(PY) -m tools.check_extras

format: install ## format the code and apply the safe fixes of the linter
	@$(PY) -m ruff format . && $(PY) -m ruff check --fix .

bench: install triton ## the benchmarks: NAME=service|wire|stall|triton|fairness|failover|fanout|warm|replay|loader|reference, all without NAME
	@for name in $(or $(NAME),service wire stall triton fairness failover fanout warm replay loader reference); do $(PY) -m bench $$name; done

protos: install ## generate the committed stubs again
	@$(PY) -m teacherfarm.protos.generate

clean: ## remove the virtual environment, build products and caches
	@rm -rf $(VENV) .venv-triton build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage* htmlcov
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
