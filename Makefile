# Two commands matter: `make reproduce` and `make test`. `make help` lists the rest.
# Every variable can be set on the command line, e.g. `make reproduce PYTHON=/opt/py311/bin/python3`.

PYTHON   ?= python3
VENV     ?= .venv
PROFILE  ?= embedded
OUT      ?= build
PIP_ARGS ?=
ARGS     ?=
WORKERS  ?= 2

BIN   := $(VENV)/bin
# A new lock file or pyproject.toml makes a new key, hence a new installation.
KEY   := $(shell cat requirements.lock pyproject.toml | cksum | tr ' ' '-')
STAMP := $(VENV)/.installed-$(KEY)

# Caches stay inside the repository: an empty or shared home directory is no obstacle.
export MPLCONFIGDIR    ?= $(CURDIR)/.cache/matplotlib
export DEEPFACE_HOME   ?= $(CURDIR)/.cache/deepface
export ANNY_CACHE_DIR  ?= $(CURDIR)/.cache/anny
export WARP_CACHE_PATH ?= $(CURDIR)/.cache/warp
export IPYTHONDIR      ?= $(CURDIR)/.cache/ipython
export PYDEVD_DISABLE_FILE_VALIDATION ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK  ?= 1

.DEFAULT_GOAL := help
.PHONY: help env reproduce book pdf notebooks test bench browser lint lab lock clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 20

env: $(STAMP)  ## create or update the environment in .venv

$(STAMP): | caches
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	  echo "fusionlib needs Python 3.11, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Name another one: make PYTHON=/path/to/python3.11 $(or $(MAKECMDGOALS),env)" >&2; exit 1; }
	@echo "environment: installing the locked packages into $(VENV) (about 2 GB the first time)"
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed: install your system's venv package (Debian: python3-venv)" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.installed-*
	@touch $@

.PHONY: caches
caches:
	@mkdir -p $(MPLCONFIGDIR) $(DEEPFACE_HOME) $(ANNY_CACHE_DIR) $(WARP_CACHE_PATH) $(IPYTHONDIR)

reproduce: $(STAMP)  ## run every notebook, build the book, say where to open it
	@$(BIN)/fusionlib reproduce --profile $(PROFILE) --out $(OUT) $(ARGS)

book: $(STAMP)  ## build the book again from the notebooks as they were last executed
	@$(BIN)/fusionlib book --profile $(PROFILE) --out $(OUT)

pdf: $(STAMP)  ## print the whole book to build/book.pdf, from the notebooks as they were executed (wants Chromium)
	@$(BIN)/fusionlib book --profile $(PROFILE) --pdf --out $(OUT)

TESTED := $(BIN)/python -m pytest --nbval-lax --nbval-current-env

# Files go to the workers whole; the claims are read last, from what all the others found.
test: export HF_HUB_OFFLINE = 1
test: export OMP_NUM_THREADS ?= 1
test: lint  ## lint, types, unit tests, and every notebook run at its small default size
	$(TESTED) -n $(WORKERS) --dist loadfile tests notebooks --ignore=notebooks/claims.ipynb $(ARGS)
	$(TESTED) notebooks/claims.ipynb $(ARGS) || [ $$? -eq 5 ]  # 5: ARGS left nothing of it

notebooks: export HF_HUB_OFFLINE = 1
notebooks: $(STAMP)  ## store each notebook's outputs in it, at its small default size, for readers online
	@$(BIN)/fusionlib notebooks --out $(OUT) $(ARGS)

bench: $(STAMP)  ## measure what things cost, small models on the CPU, on an idle machine (begins no further one after an hour)
	$(BIN)/python -m benchmarks all --minutes 60 $(ARGS)

browser: $(STAMP)  ## look at every page of the built book in Chromium, narrow and wide, light and dark
	FUSIONLIB_BOOK=$(abspath $(OUT))/book $(BIN)/python -m pytest -m browser tests/publishing/test_browser.py $(ARGS)

lint: $(STAMP)  ## ruff, the layers and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --cache-dir .cache/import_linter
	$(BIN)/mypy fusionlib companion

lab: $(STAMP)  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir notebooks $(ARGS)

# Run it after upgrading packages in $(VENV), and only when `make test` passed there.
lock: $(STAMP)  ## pin what is installed: requirements.lock and environment.yml
	@{ grep '^#' requirements.lock; \
	   $(BIN)/python -m pip freeze --all --exclude-editable | grep -v -i -E '^(pip|fusionlib)==' | sed 's/+cpu$$//' | sort -f; \
	 } > requirements.lock.new && mv requirements.lock.new requirements.lock
	@{ sed '/^      - /d' environment.yml; grep '==' requirements.lock | sed 's/^/      - /'; \
	 } > environment.yml.new && mv environment.yml.new environment.yml

clean:  ## remove what was built; the environment and the caches stay
	rm -rf $(OUT) _build
