# Everything that CI runs, verbatim. `make demo` and `make test` set up what they need in .venv.
PYTHON ?= python3
# On Linux PyPI's torch brings CUDA along, gigabytes: make TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
BIN := .venv/bin
# Where Debian's python3-venv is missing, half of an environment is left: with it the next make would go on.
venv = $(PYTHON) -m venv $(1) || { rm -rf $(1); echo "no virtual environment can be made; on Debian: apt install python3-venv" >&2; exit 1; }

.PHONY: help setup demo test test-slow bench check protos wheel clean
help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("iog-runtime needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else 0'
	$(call venv,.venv)
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/runtime.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[cpu]'
	touch $@

.venv/dev.stamp: pyproject.toml .venv/runtime.stamp
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

node_modules/.bin/buf:
	command -v npm >/dev/null || { apt-get update -qq && apt-get install -y -qq npm; }
	npm install --silent --no-save --no-package-lock @bufbuild/buf@1.75.0

.venv-protos/protos.stamp:
	$(call venv,.venv-protos)
	# The oldest grpcio-tools that serves: generated code checks the installed protobuf's version at import.
	.venv-protos/bin/python -m pip install --quiet grpcio-tools==1.66.2 'setuptools<80'
	touch $@

setup: .venv/dev.stamp ## Set up .venv for development

demo: .venv/runtime.stamp ## Click on a photograph through a real server; writes demo.png
	$(BIN)/python examples/demo.py

test: .venv/dev.stamp ## All tests but the slow ones
	$(BIN)/python -m pytest -m 'not slow'

test-slow: .venv/dev.stamp ## The proofs that take minutes
	$(BIN)/python -m pytest -m slow

BENCH := build/benchmarks
bench: .venv/dev.stamp ## All benchmarks, under 15 minutes on two cores: build/benchmarks/report.md and the README's table
	$(BIN)/python benchmarks/click_latency.py --json $(BENCH)/click_latency.json
	$(BIN)/python benchmarks/server_load.py --seconds 15 --json $(BENCH)/server_load.json
	$(BIN)/python benchmarks/server_load.py --burst 64 --model published --json $(BENCH)/burst.json
	$(BIN)/python benchmarks/server_load.py --soak 1.5 --model published --json $(BENCH)/soak.json
	$(BIN)/python benchmarks/scaling.py --json $(BENCH)/scaling.json
	$(BIN)/python benchmarks/report.py $(BENCH) --readme README.md

check: .venv/dev.stamp node_modules/.bin/buf .venv-protos/protos.stamp ## Lint, types, import contracts, wire contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	node_modules/.bin/buf lint
	$(MAKE) --no-print-directory protos
	git diff --exit-code -- runtime/iog/v1

protos: .venv-protos/protos.stamp ## Generate runtime/iog/v1 from protos/
	.venv-protos/bin/python -m grpc_tools.protoc -Iprotos --python_out=runtime --pyi_out=runtime \
	    --grpc_python_out=runtime protos/iog/v1/segmentation.proto

wheel: .venv/dev.stamp ## Build dist/*.whl
	$(BIN)/python -m build --wheel

clean: ## Remove what the other targets made
	rm -rf .venv .venv-protos node_modules dist build demo.png
