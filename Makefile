# Each target sets up what it needs in .venv. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
# The versions that are installed. Without it, `make demo CONSTRAINTS=`, the newest in the ranges of
# pyproject.toml are: for a Python for which one of these has no wheel yet.
CONSTRAINTS ?= constraints.txt

# Of `make simulate`: how many seeds from which on, or the one to replay with all that happens.
SEEDS ?= 2000
START ?= 0
REPLAY ?=

.PHONY: setup test test-slow test-all test-fast test-lowest lint chaos chaos-cluster demo simulate fuzz bench guard constraints

setup: $(VENV)/dev.installed

# Tests, and chaos, start processes by the dozen, each of which would compile every module.
test test-slow test-all: export PYTHONDONTWRITEBYTECODE =
test: setup
	$(VENV)/bin/pytest -m "not slow"

# The long ones: many faults at once, upgrades, real models, compiled modules, planted bugs.
test-slow: setup
	$(VENV)/bin/pytest -m slow

# Both at once, which shares their Kafkas: what continuous integration runs.
test-all: setup
	$(VENV)/bin/pytest

# While one works: those of `make test` that need no Kafka, with a third of each property's examples.
test-fast: export PYTHONDONTWRITEBYTECODE =
test-fast: export SHUNTER_FUZZ_EXAMPLES ?= 15
test-fast: setup
	$(VENV)/bin/pytest -m "not kafka and not slow"

# The least versions that pyproject.toml allows of what an installation needs, in an environment of
# their own. The tests' tools are the newest, and what old versions use of others may be deprecated.
LOWEST := .venv-lowest
test-lowest: export PYTHONDONTWRITEBYTECODE =
test-lowest:
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[all,objects]'
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --editable '.[dev]'
	$(LOWEST)/bin/pytest -m "not kafka and not slow" -W default::DeprecationWarning tests/unit tests/contract

lint: setup
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

# Every fault in turn, under load: about six minutes a round, or so long as REQUESTS last. SEED=7
# repeats a run. The one of docs/reliability.md: REQUESTS=1000000 RATE=210 TABLE=docs/reliability.md
ROUNDS ?= 3
RATE ?= 60
REQUESTS ?=
SEED ?=
TABLE ?=
chaos: export PYTHONDONTWRITEBYTECODE =
chaos: setup
	$(VENV)/bin/python tests/chaos/run.py --rounds $(ROUNDS) --rate $(RATE) $(if $(SEED),--seed $(SEED)) \
		$(if $(REQUESTS),--requests $(REQUESTS)) $(if $(TABLE),--table $(TABLE))

# On a Kafka of three brokers, what happens to those: about 8 minutes.
chaos-cluster: export PYTHONDONTWRITEBYTECODE =
chaos-cluster: setup
	$(VENV)/bin/python tests/chaos/run.py --nodes 3 --rounds 1 --rate 20 $(if $(SEED),--seed $(SEED)) \
		$(if $(TABLE),--table $(TABLE))

# Kafka is all that it needs beside the package itself; with the other extras the set-up takes twice as long.
# REAL=1: some requests by real models of this machine's processor, whose packages take 1 GB.
REAL ?=
demo: $(VENV)/$(if $(REAL),real,broker).installed
	$(VENV)/bin/shunter demo $(if $(REAL),--real)

simulate: setup
	PYTHONPATH=tests:tests/support $(VENV)/bin/python -m simulation $(if $(REPLAY),--replay $(REPLAY),--seeds $(SEEDS) --start $(START))

# So many hostile inputs for each property of the decoder, and of what comes after it: an hour. Of
# what else is given any input: FUZZ=10000 FUZZED="tests/unit/policies/test_fleet.py tests/unit/topics/test_request.py tests/contract/test_openai_fuzz.py"
FUZZ ?= 100000
FUZZED ?= tests/unit/topics/test_decoder_fuzz.py
fuzz: setup
	SHUNTER_FUZZ_EXAMPLES=$(FUZZ) $(VENV)/bin/pytest -n0 -s $(FUZZED)

# The table of docs/performance.md, about 40 minutes; BENCH=--quick for 3.
BENCH ?=
bench: $(VENV)/bench.installed
	$(VENV)/bin/python -m benchmarks $(BENCH)

# Whether what a request costs has grown by more than a third since it was recorded.
guard: setup
	$(VENV)/bin/python -m benchmarks.guard

# Writes constraints.txt: the newest versions for each extra but `bench` and each Python from 3.11 on.
# `make constraints UPGRADE=` changes none but those that pyproject.toml no longer allows.
UPGRADE ?= --upgrade
constraints:
	$(PYTHON) -m venv $(VENV)/constraints
	$(VENV)/constraints/bin/pip install --quiet --disable-pip-version-check uv
	$(VENV)/constraints/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])' \
		| $(VENV)/constraints/bin/uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-annotate \
		--custom-compile-command 'make constraints' $(UPGRADE) --output-file constraints.txt pyproject.toml -

# Quix holds back what the others have newer.
$(VENV)/bench.installed: CONSTRAINTS =

UNFIT = { echo 'Does this Python lack a version of $(CONSTRAINTS)? `make CONSTRAINTS= TARGET` takes the newest that fit.' >&2; exit 1; }

PIP = $(VENV)/bin/pip install --quiet --disable-pip-version-check
# uv takes a sixth of pip's time; pip, which may be set up for another index, is asked where it can't.
# The stem is the extra of pyproject.toml that is installed: dev holds all.
$(VENV)/%.installed: export PIP_CONSTRAINT = $(CONSTRAINTS)
$(VENV)/%.installed: export PIP_BUILD_CONSTRAINT = $(CONSTRAINTS)
$(VENV)/%.installed: export UV_CONSTRAINT = $(CONSTRAINTS)
$(VENV)/%.installed: export UV_BUILD_CONSTRAINT = $(CONSTRAINTS)
$(VENV)/%.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) uv && $(VENV)/bin/uv pip install --quiet --compile-bytecode --python $(VENV)/bin/python --editable '.[$*]' \
		|| $(PIP) --editable '.[$*]' $(if $(CONSTRAINTS),|| $(UNFIT))
	touch $@
