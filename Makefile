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

help:  ## list the targets
	@awk -F ':.*##' '/^[a-z-]+:.*##/ {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Inbox Relay needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@.ci/install $(VENV) $(PYTHON)

setup: $(READY)  ## make .venv with every locked dependency

run: $(READY)  ## run the product with demo services, until Ctrl-C
	$(BIN)/relay demo

quick: $(READY)  ## test without processes and Postgres (90 s on two cores)
	$(TEST) -q --hypothesis-profile quick --database sqlite -m "not long" $(QUICK)

test: $(READY)  ## test the product, on SQLite and Postgres (11 min)
	$(TEST) -m "not long"

prove: $(READY)  ## run the long proofs, then the fault tests (12 min)
	$(TEST) -m "long and not alone"
	$(BIN)/python -m pytest --verbose -m alone

pythons: $(READY)  ## test the core on each other Python that is installed
	TESTERS=$(TESTERS) .ci/pythons

faults: $(READY)  ## inject faults for MINUTES=5 (SEED=, DATABASE=sqlite)
	$(BIN)/python -m tests.proofs.faults.run --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED)) --database $(or $(DATABASE),postgres)

fuzz: $(READY)  ## fuzz the receiver with REQUESTS=50000 (SEED=)
	FUZZ_REQUESTS=$(or $(REQUESTS),50000) FUZZ_SEED=$(or $(SEED),1) $(BIN)/python -m pytest -q tests/proofs/test_fuzz.py

longest: $(READY)  ## time the order lock with OPEN=20000 (DATABASE=postgres)
	$(BIN)/python -m benchmarks.order_lock --open $(or $(OPEN),20000) --database $(or $(DATABASE),sqlite)

refusals: $(READY)  ## time a 401 of each kind of source, in ROUNDS=5000
	$(BIN)/python -m benchmarks.refusals --rounds $(or $(ROUNDS),5000)

large: $(READY)  ## measure bodies of 25 MiB, and waits (DATABASE=postgres)
	$(BIN)/python -m benchmarks.large_bodies --database $(or $(DATABASE),sqlite)

check: $(READY)  ## lint, format, types, docstrings, imports between packages
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

# With the extras in the first lock: else pip 23.2 looks for them at another version of a package that is pinned to an older one.
# The versions in --output-file are kept where they fit: the second lock has those of the first, whatever is newer by then.
lock: $(READY)  ## update both locks to the newest versions that fit
	$(COMPILE) --no-strip-extras --upgrade --extra dev --output-file requirements.lock pyproject.toml
	cp requirements.lock requirements-runtime.lock
	$(COMPILE) --output-file requirements-runtime.lock pyproject.toml

sbom: $(READY)  ## write the bill of materials to SBOM=sbom.json (CycloneDX)
	$(BIN)/cyclonedx-py requirements --validate --output-reproducible --pyproject pyproject.toml \
	  --output-file $(SBOM) requirements-runtime.lock

.PHONY: help setup run quick test prove pythons faults fuzz longest refusals large check docs format lock sbom
