# Everything a fresh machine needs is set up here: a virtual environment with pinned packages, torch first.
PYTHON ?= python3
BIN := .venv/bin
# On Linux PyPI's torch brings CUDA along. For the small CPU build: make demo TORCH_FROM="--index-url <its address>"
TORCH_FROM ?=

.PHONY: setup demo view browser lint test test-slow test-oldest test-newest coverage scores bench bench-app schema verified

setup: .venv/ready

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Toushi needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH_FROM) torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps attention-map-diffusers==1.0.0  # the peer
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/toushi demo --overwrite
	@echo "Before commands without make:  source .venv/bin/activate"

view: setup
	$(BIN)/toushi view runs/demo

# Debian's chromium, for the browser test; without it that test says so, and fails in CI.
browser:
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
	  || echo "chromium is not here and could not be installed: the browser test cannot run."

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q benchmarks dashboards experiments hooks probe reports tests toushi
	$(BIN)/lint-imports
	$(BIN)/pyright

# Two processes of one thread: the tests' models are tiny, and on a busy machine two threads wait for each other ten
# times as long. A file's tests stay in one process, which makes their models once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
SPREAD := -n 2 --dist loadfile

test: setup browser lint
	$(PYTEST) $(SPREAD)

test-slow: setup browser
	$(PYTEST) -m slow

# Which lines the tests run; the page is htmlcov/index.html.
coverage: setup browser
	$(PYTEST) $(SPREAD) --cov --cov-report=term --cov-report=html

# The oldest and the newest versions that people may have beside their own pipelines, each in an environment of its
# own. What depends on them is tested: hooks, models, pipelines, recording, text encoders, traces and figures.
VERSIONED := $(addprefix tests/,analysis encoders figures hooks models pipelines recording text trace cli)
EXTRAS := pipelines,figures,app,reports,experiments,export
TOOLS := pytest pytest-xdist hypothesis beartype pypdfium2

test-oldest: requirements-oldest.txt
	test -d .venv-oldest || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet $(TORCH_FROM) "torch==2.9.*"
	.venv-oldest/bin/pip install --quiet -r requirements-oldest.txt $(TOOLS) --editable ".[$(EXTRAS)]"
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -q $(SPREAD) $(VERSIONED)

test-newest:
	test -d .venv-newest || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade $(TORCH_FROM) torch
	.venv-newest/bin/pip install --quiet --upgrade --upgrade-strategy eager $(TOOLS) --editable ".[$(EXTRAS)]"
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -q $(SPREAD) $(VERSIONED)

# The model card's scores: what it draws, judged by the recogniser, and whether its heat maps point at objects.
scores: setup
	$(BIN)/python -m toushi.experiments.measures.score_mini_unet
	$(BIN)/python -m toushi.experiments.measures.score_mini_unet --split test
	$(BIN)/python -m toushi.experiments.measures.pointing

# What recording costs: time, memory, exactness, reading. On an idle machine, or the ratios are noise.
bench: setup
	$(BIN)/python -m benchmarks

# The explorer with 1, 5 and 20 visitors at once: each its own picture, bytes, latencies.
bench-app: setup browser
	$(BIN)/python -m benchmarks.crowd

# The published schema of a trace's manifest, after a change of probe/trace/manifest.py.
schema: setup
	$(BIN)/python -m toushi.probe.trace.print_manifest_schema > docs/trace-manifest.schema.json

# The table of checked models in docs/families.md and its twin, after a new row of `toushi check` in docs/verified/.
verified: setup
	$(BIN)/python -m toushi.probe.model_check.verified_tables docs
