.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
SBOM := sbom.json
# One more than there are cores: tests wait about as much as they compute.
TESTERS := $(shell $(PYTHON) -c 'import os; print(min(len(os.sched_getaffinity(0)) + 1, 4))')

TEST := $(BIN)/python -m pytest --numprocesses $(TESTERS) --dist worksteal
# What starts no process: of the documentation, references and what is generated.
QUICK := tests/core tests/sources tests/destinations tests/store tests/flow tests/docs/test_references.py tests/docs/test_generated.py

help:  ## show what can be made
	@awk -F ':.*##' '/^[a-z-]+:.*##/ {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Inbox Relay needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

setup: $(READY)  ## make the virtual environment with every locked dependency

run: $(READY)  ## run the whole product with demo services and watch it work (Ctrl-C ends it)
	$(BIN)/relay demo

quick: $(READY)  ## run what needs no process and no Postgres, within 90 s on two cores: the habit of a developer
	$(TEST) -q --hypothesis-profile quick --database sqlite -m "not long" $(QUICK)

test: $(READY)  ## run what shows that the product works, on SQLite and on a Postgres that the tests start
	$(TEST) -m "not long"

prove: $(READY)  ## run the rest: proofs at length and at size, then the rigs one by one
	$(TEST) -m "long and not alone"
	$(BIN)/python -m pytest --verbose -m alone

pythons: $(READY)  ## run the tests of the core on each other Python from 3.11 to 3.14 that is installed
	TESTERS=$(TESTERS) .ci/pythons

faults: $(READY)  ## break everything at random for MINUTES=5 (SEED=, DATABASE=sqlite) and count what happened
	$(BIN)/python -m tests.proofs.faults.run --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED)) --database $(or $(DATABASE),postgres)

fuzz: $(READY)  ## send the receiver REQUESTS=50000 random requests (SEED=) and look at every answer
	FUZZ_REQUESTS=$(or $(REQUESTS),50000) FUZZ_SEED=$(or $(SEED),1) $(BIN)/python -m pytest -q tests/proofs/test_fuzz.py

longest: $(READY)  ## time the longest transactions under the order lock with OPEN=20000 open (DATABASE=postgres)
	$(BIN)/python -m benchmarks.order_lock --open $(or $(OPEN),20000) --database $(or $(DATABASE),sqlite)

refusals: $(READY)  ## time a 401 of each kind of source against one of no source, in ROUNDS=5000
	$(BIN)/python -m benchmarks.refusals --rounds $(or $(ROUNDS),5000)

large: $(READY)  ## measure the memory of bodies of 25 MiB, and how long others wait beside them (DATABASE=postgres)
	$(BIN)/python -m benchmarks.large_bodies --database $(or $(DATABASE),sqlite)

check: $(READY)  ## lint, formatting, types, docstrings and the arrows between modules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/docs/test_docstrings.py

docs: $(READY)  ## write the generated parts of docs/ again
	$(BIN)/python docs/generate.py

format: $(READY)  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The versions in --output-file are kept where they fit: the second lock has those of the first, whatever is newer by then.
lock: $(READY)  ## refresh both locks to the newest versions that fit pyproject.toml
	$(COMPILE) --upgrade --extra dev --output-file requirements.lock pyproject.toml
	cp requirements.lock requirements-runtime.lock
	$(COMPILE) --output-file requirements-runtime.lock pyproject.toml

sbom: $(READY)  ## write SBOM=sbom.json: everything that production installs, as CycloneDX, checked against its schema
	$(BIN)/cyclonedx-py requirements --validate --output-reproducible --pyproject pyproject.toml \
	  --output-file $(SBOM) requirements-runtime.lock

.PHONY: help setup run quick test prove pythons faults fuzz longest refusals large check docs format lock sbom
