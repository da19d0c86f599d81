# `make help` lists the commands. Each sets up what it needs, in .venv.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SOURCES := minitensorpoly tests book
CHROMIUM ?= /usr/bin/chromium
IMPORTED := $(wildcard minitensorpoly/*.py book/lab/*.py book/lab/weights/*/* book/results/*)
# The tests and the laboratory run a process on each core.
export OMP_NUM_THREADS = 1
export TOKENIZERS_PARALLELISM = false
export CHROMIUM

.DEFAULT_GOAL := help
.PHONY: help book test test-site lint format lab gpu chapters backbones rehearsal clean

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version)."; \
	  echo "Name another one, for instance: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up .venv (a few minutes, once)"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(READY)

# The cache compares the cells of a chapter, not what they import.
_build/.current: $(READY) $(IMPORTED)
	@rm -rf _build/html _build/.doctrees _build/.jupyter_cache && mkdir -p _build && touch $@

book: _build/.current  ## execute the chapters and build the website
	@# Sphinx would not read a page again whose warnings have failed one build.
	$(BIN)/jupyter-book build --warningiserror --keep-going . || { rm -rf _build/.doctrees; exit 1; }
	@echo "The website is at $(CURDIR)/_build/html/index.html"

test: lint  ## lint, run the tests, and run every notebook as a test
	$(BIN)/python -m pytest -q --numprocesses auto
	$(BIN)/python -m pytest -q --numprocesses auto --dist loadfile --nbval-lax --nbval-current-env \
	  --nbval-cell-timeout 1800 --override-ini addopts= --override-ini filterwarnings=default book/*.ipynb

test-site: $(READY) $(CHROMIUM) _build/html/index.html  ## try the website in Chromium: _build/screenshots
	$(BIN)/python -m pytest -q tests/site

_build/html/index.html:
	$(MAKE) book

$(CHROMIUM):
	@test "$(CHROMIUM)" = /usr/bin/chromium && test "$$(id -u)" = 0 && command -v apt-get > /dev/null || { \
	  echo "The website is tested in Chromium, which is not at $(CHROMIUM)."; \
	  echo "Install it (on Debian: apt-get install chromium), or name it: make test-site CHROMIUM=..."; exit 1; }
	apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium

lint: $(READY)  ## check style
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

format: $(READY)  ## mend style
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

lab: $(READY)  ## repeat the full experiment (hours): book/results/lab_cpu.json
	cd book && ../$(BIN)/python -m lab.experiment

gpu: $(READY)  ## on a GPU: the experiment on real tasks, and the time of a step at T5-base's shape
	cd book && ../$(BIN)/python -m lab.real_experiment gpu $(if $(DATA),--data $(DATA)) --workers 8
	cd book && ../$(BIN)/python -m lab.bench --device cuda --dtype bfloat16 --width 768 --layers 12 \
	  --out results/bench_t5_base.json

chapters: $(READY)  ## execute the notebooks in place, after a change, and record their cost
	cd book && ../$(BIN)/python -m lab.execute

backbones: $(READY)  ## pretrain the backbones again: book/lab/weights
	cd book && ../$(BIN)/python -m lab.backbone --width 64 && ../$(BIN)/python -m lab.backbone --width 256

rehearsal: $(READY)  ## run chapter 9 as Colab would, in a fresh environment (pip needs a network)
	$(BIN)/python tests/rehearse_colab.py

clean:  ## remove what was built, and the environment
	rm -rf .venv _build
