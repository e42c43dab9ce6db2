# Everything runs in .venv, which the first target that needs it makes. PYTHON=python3.12 make demo picks another Python.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo demo-vision classic test lint types check screenshots bench gpu clean

demo: $(VENV)/.demo  ## features of SmolLM2 on BBC news, in the browser
	$(BIN)/saekit demo text

demo-vision: $(VENV)/.demo  ## features of DINOv2 on tuxpaint stamps, in the browser
	$(BIN)/saekit demo images

classic: $(VENV)/.classic  ## the classic autoencoders' claims and figures (docs/classic.md), half an hour on 2 cores
	$(BIN)/python scripts/classic/run_all.py

test: $(VENV)/.dev  ## every test, the browser's included (needs Chromium: apt install chromium)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

check: lint types test

screenshots: $(VENV)/.dev  ## the pictures in docs/images, from the demos' indexes
	$(BIN)/python scripts/screenshots.py runs/demo-text/index runs/demo-images/index --out docs/images

bench: $(VENV)/.dev  ## the benchmarks that need no index of yours, one after the other
	for name in loader extract index step; do $(BIN)/python scripts/bench_$$name.py || exit 1; done

gpu: $(VENV)/.dev  ## tests and benchmarks on a CUDA device; what they print goes to benchmarks/results
	$(BIN)/python -m pytest -q -m gpu tests/gpu
	test -x .peers/bin/python || scripts/setup_peers.sh
	$(BIN)/python scripts/gpu_benchmarks.py

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.classic: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt -e '.[classic]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.demo $(VENV)/.classic

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache artifacts
