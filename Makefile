# make setup, make demo, make test: see README.md. Everything else is there for contributors.
PYTHON ?= python3
FOLDER ?=
RECORDS ?= 100000
KILLS ?= 50
BOUNCES ?= 20
CHANGES ?= 120
SEED ?=
PICTURES ?= 1000
MINUTES ?= 10
ARGS ?=
BIN := .venv/bin

.PHONY: setup demo test lint types unit bench bench-gpu formats departure fidelity chaos fuzz mutants hostile lock clean

setup: .venv/.ready

# One environment from the lock: pip brings uv (its hash is in the lock), uv brings the rest.
.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: make PYTHON=python3.12 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement .venv/uv.txt
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

demo: override export FOLDER := $(value FOLDER)
demo: setup
	$(BIN)/clip-worker demo $${FOLDER:+"$$FOLDER"}

# Each folder of tests in one process, two of them at once: most of what needs a broker waits.
test: lint types
	$(BIN)/pytest --numprocesses 2

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup
	$(BIN)/mypy

unit: setup
	$(BIN)/pytest tests/unit

# ARGS='--part whole' is one part of it.
bench: setup
	$(BIN)/python -m tests.benchmarks $(ARGS)

# On a machine with a GPU; ARGS='--device cpu --scale 0.01' is the dry run. With an environment of its own: PYTHON -m tests.benchmarks.gpu
bench-gpu: setup
	$(BIN)/python -m tests.benchmarks.gpu $(ARGS)

# The README's table of formats, as the tests measure it.
formats: setup
	$(BIN)/python -m tests.images.table

departure: setup
	$(BIN)/python -m tests.images.departure

fidelity: setup
	$(BIN)/python -m tests.model.fidelity --pictures $(PICTURES)

chaos: setup
	$(BIN)/python -m tests.chaos --records $(RECORDS) --kills $(KILLS) --bounces $(BOUNCES) --changes $(CHANGES) \
		$(if $(SEED),--seed $(SEED)) $(ARGS)

fuzz: setup
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

mutants: setup
	$(BIN)/python -m tests.fuzz --records $(RECORDS) $(if $(SEED),--seed $(SEED))

hostile: setup
	$(BIN)/python -m tests.hostile

lock: setup
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
		--extra worker --extra heic --group dev pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache
