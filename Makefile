# Everything a fresh machine needs is set up here: a virtual environment with pinned packages, torch first.
PYTHON ?= python3
BIN := .venv/bin
# On Linux PyPI's torch brings CUDA along. For the small CPU build: make demo TORCH_FROM="--index-url <its address>"
TORCH_FROM ?=

.PHONY: setup demo view browser lint test test-slow scores bench schema

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
	$(BIN)/toushi trace "左边是猫，右边是月亮，夜晚" --steps 20 --seed 0 --out runs/demo --overwrite
	@echo "The picture and where each word went:  runs/demo/words.png"
	@echo "Explore it in the browser:             make view"

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

# One thread: the tests' models are tiny, and on a busy machine two threads wait for each other ten times as long.
test: setup browser lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

test-slow: setup browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow

# The model card's scores: what it draws, judged by the recogniser, and whether its heat maps point at objects.
scores: setup
	$(BIN)/python -m toushi.experiments.measures.score_mini_unet
	$(BIN)/python -m toushi.experiments.measures.score_mini_unet --split test
	$(BIN)/python -m toushi.experiments.measures.pointing

# What recording costs: time, memory, exactness, reading. On an idle machine, or the ratios are noise.
bench: setup
	$(BIN)/python -m benchmarks

# The published schema of a trace's manifest, after a change of probe/trace/manifest.py.
schema: setup
	$(BIN)/python -m toushi.probe.trace.manifest_schema > docs/trace-manifest.schema.json
