.DEFAULT_GOAL := help
# If it were set, each program started by a test would compile all its imports, which doubles its startup time.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A separate environment, which keeps the peers' pytest plugins out of the tests.
BENCH := .venv-bench
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
SBOM := sbom.json
# Docker's format, since the OCI format has no health checks.
BUILD := podman build --format docker
IMAGE := localhost/inbox-relay:latest
# Two test processes per core, since tests wait as much as they compute.
CORES := $(shell $(PYTHON) -c 'import os; print(len(os.sched_getaffinity(0)))')
TESTERS := $(shell $(PYTHON) -c 'print(min(2 * $(CORES), 8))')

SHORT := not long and not nightly
TEST := $(BIN)/python -m pytest --numprocesses $(TESTERS) --dist worksteal
# Tests that start no process; of the documentation, only references and generated blocks.
QUICK := tests/core tests/sources tests/destinations tests/store tests/flow tests/docs/test_references.py tests/docs/test_generated.py

help:  ## list the targets
	@awk -F ':.*##' '/^[a-z-]+:.*##/ {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Inbox Relay needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@.ci/install $(VENV) $(PYTHON)

$(BENCH)/.ready: requirements-bench.lock pyproject.toml
	@.ci/install $(BENCH) $(PYTHON) requirements-bench.lock

setup: $(READY)  ## make .venv with every locked dependency

run: $(READY)  ## run the product with demo services, until Ctrl-C
	$(BIN)/relay demo --stay

quick: $(READY)  ## test without processes and Postgres (80 s on two cores)
	$(TEST) -q --hypothesis-profile quick --database sqlite -m "$(SHORT)" $(QUICK)

test: $(READY)  ## test the product, on SQLite and Postgres (9 min)
	$(TEST) -m "$(SHORT)"

prove: $(READY)  ## run the long proofs, then the fault tests (8 min)
	$(TEST) -m "long and not alone"
	$(BIN)/python -m pytest --verbose -m alone

nightly: $(READY)  ## run the rest: Pythons, pages, images, units, cluster, mutants
	@.ci/patroni
	@$(MAKE) --no-print-directory pythons
	$(TEST) -m nightly
	@$(MAKE) --no-print-directory mutants

mutants: $(READY)  ## mutate the core in 1,500 places; its tests find each
	PATH="$(CURDIR)/$(BIN):$$PATH" CI=true $(BIN)/python .ci/mutants --max-children $(CORES)

pythons: $(READY)  ## test the core on the other installed Pythons
	TESTERS=$(TESTERS) .ci/pythons

faults: $(READY)  ## inject faults for MINUTES=5 (SEED=, DATABASE=sqlite)
	FAULTS_MINUTES=$(or $(MINUTES),5) $(if $(SEED),FAULTS_SEED=$(SEED)) $(BIN)/python -m pytest --database $(or $(DATABASE),postgres) tests/proofs/faults/test_faults.py

fuzz: $(READY)  ## fuzz the receiver with REQUESTS=50000 (SEED=)
	FUZZ_REQUESTS=$(or $(REQUESTS),50000) FUZZ_SEED=$(or $(SEED),1) $(BIN)/python -m pytest -q tests/proofs/test_fuzz.py

longest: $(READY)  ## time the order lock with OPEN=20000 (DATABASE=postgres)
	$(BIN)/python -m benchmarks.order_lock --open $(or $(OPEN),20000) --database $(or $(DATABASE),sqlite)

bench: $(BENCH)/.ready  ## compare the product with its peers, at length (ONLY=row)
	$(BENCH)/bin/python -m benchmarks $(if $(ONLY),--only $(ONLY))

bench-quick: $(BENCH)/.ready  ## compare key ratios with the committed ones (2 min)
	$(BENCH)/bin/python -m benchmarks --quick

check: $(READY)  ## lint, format, types, English, imports, the site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/docs/test_english.py
	@$(MAKE) --no-print-directory site

# Always reads all pages: a warning appears only while its page is read.
site: $(READY)  ## build the documentation as a site into build/site
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env --doctree-dir build/doctrees --conf-dir docs . build/site

docs: $(READY)  ## regenerate the generated parts of docs/
	$(BIN)/python docs/generate.py

format: $(READY)  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The first lock keeps the extras: without them, pip 23.2 would look for them at another version of an already pinned package.
# uv keeps the versions in --output-file where they fit, so the other locks start from the first lock's versions.
lock: $(READY)  ## update the locks to the newest versions that fit
	$(COMPILE) --no-strip-extras --upgrade --extra dev --output-file requirements.lock pyproject.toml
	cp requirements.lock requirements-runtime.lock
	$(COMPILE) --extra otel --output-file requirements-runtime.lock pyproject.toml
	cp requirements.lock requirements-bench.lock
	$(COMPILE) --no-strip-extras --extra bench --output-file requirements-bench.lock pyproject.toml

sbom: $(READY)  ## write the bill of materials to SBOM=sbom.json (CycloneDX)
	$(BIN)/cyclonedx-py requirements --validate --output-reproducible --pyproject pyproject.toml \
	  --output-file $(SBOM) requirements-runtime.lock

release: $(READY)  ## build, check and try wheel, sdist and SBOM in dist/
	.ci/release dist
	.ci/try-wheel dist

wheel: $(READY)  ## build the wheel of this checkout into build/wheel/
	rm -rf build/lib build/bdist.* build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .

image: wheel sbom  ## build the container image IMAGE (BUILD="docker build")
	$(BUILD) --file deploy/Containerfile --tag $(IMAGE) .

.PHONY: help setup run quick test prove nightly mutants pythons faults fuzz longest bench bench-quick check site docs format lock sbom release wheel image
