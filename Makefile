# Two commands for a fresh machine: `make quickstart` and `make test`. Both make the environment first.
#
#   VENV    the environment; one of your own is used as it is, with the package installed into it
#   PYTHON  the Python, 3.11 or newer, that makes the environment where there is none
#   TORCH   what pip installs where the environment has no torch, for example
#           TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
#   ARGS    more options for the run, for example ARGS="--data.max_batches 1"
VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch==2.13.0
ARGS ?=

# Threads that wait for each other asleep: spinning, they slow a run down fifty-fold where something else uses a core.
export OMP_WAIT_POLICY ?= PASSIVE

RUN ?= runs/quickstart

INSTALLED := $(VENV)/.resd-installed
RESD := $(VENV)/bin/resd

.DEFAULT_GOAL := help
.PHONY: help env model quickstart quickstart-ci smollm2 study study-small notebooks test test-all lint format docs clean

help:
	@echo "make quickstart     RESD learns the micro-world in three minutes on a CPU: environment, training, results"
	@echo "make model          a small real model for a CPU, into models/"
	@echo "make smollm2        two updates of a real model on Manufactoria, in eight minutes on a CPU"
	@echo "make study-small    methods compared on the micro-world, in a quarter of an hour on two cores"
	@echo "make study          that, and each choice of the method, in an hour and a half"
	@echo "make notebooks      runs notebooks/ again, all but the one for a GPU, and keeps their outputs"
	@echo "make test           the tests; test-all has the slow ones too"
	@echo "make lint           ruff and mypy; format rewrites"
	@echo "make docs           the documentation, into site/, checked for broken links"
	@echo "make env            the environment alone"
	@echo "make quickstart-ci  a smaller world, checked to be learned; then every command of resd once"

env: $(INSTALLED)

# Torch first: as a dependency of the package it would be whatever build pip likes best.
$(INSTALLED): pyproject.toml
	@test -x $(VENV)/bin/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": set PYTHON")'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -c 'import torch' 2>/dev/null || $(VENV)/bin/python -m pip install $(TORCH)
	$(VENV)/bin/python -m pip install -e '.[dev]'
	@touch $@

# micro-lm's steps are so small that two threads wait for each other longer than they work: one is 1.4 times as fast.
quickstart quickstart-ci: export OMP_NUM_THREADS ?= 1

quickstart: $(INSTALLED)
	$(RESD) fit --config configs/quickstart.yaml --run_dir $(RUN) --overwrite true $(ARGS)
	$(RESD) show $(RUN)

quickstart-ci: RUN := runs/quickstart-ci
quickstart-ci: $(INSTALLED)
	$(RESD) fit --config configs/quickstart.yaml --config configs/quickstart_ci.yaml --run_dir $(RUN) \
		--overwrite true $(ARGS)
	$(RESD) show $(RUN)
	$(VENV)/bin/python scripts/check_learned.py $(RUN)
	$(RESD) validate --config $(RUN)/config.yaml --ckpt_path last
	$(RESD) predict --config $(RUN)/config.yaml --ckpt_path last
	rm -rf $(RUN).exported
	$(RESD) export $(RUN) $(RUN).exported --update last

SMOLLM2 := models/smollm2-135m-instruct

model: $(SMOLLM2)/config.json

$(SMOLLM2)/config.json: | $(INSTALLED)
	$(VENV)/bin/python scripts/fetch_smollm2.py --out $(SMOLLM2)

smollm2: $(INSTALLED) $(SMOLLM2)/config.json
	$(RESD) fit --config configs/model/smollm2_nf4.yaml --config configs/task/manufactoria.yaml \
		--config configs/method/resd.yaml --config configs/trainer/cpu.yaml --config configs/smollm2_manufactoria.yaml \
		--run_dir runs/smollm2 --overwrite true $(ARGS)
	$(RESD) show runs/smollm2

study-small: $(INSTALLED)
	$(RESD) compare configs/study/tape_machines_small.yaml --out benchmarks/results/study $(ARGS)

study: study-small
	$(RESD) compare configs/study/tape_machines_choices.yaml --out benchmarks/results/study_choices $(ARGS)
	$(RESD) compare configs/study/tape_machines_evidence.yaml --out benchmarks/results/study_evidence $(ARGS)

notebooks: $(INSTALLED)
	$(VENV)/bin/python scripts/run_notebooks.py notebooks/0[1-4]*.ipynb

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m "not slow and not gpu and not notebooks and not vllm" $(ARGS)

test-all: $(INSTALLED)
	$(VENV)/bin/python -m pytest $(ARGS)

lint: $(INSTALLED)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

DOCS_INSTALLED := $(VENV)/.resd-docs-installed

$(DOCS_INSTALLED): pyproject.toml $(INSTALLED)
	$(VENV)/bin/python -m pip install -e '.[docs]'
	@touch $@

docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

clean:
	rm -rf site build dist .pytest_cache .mypy_cache .ruff_cache
