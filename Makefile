# quickstart, install and the tests first make .venv with what they need; see README.md.
PYTHON ?= python3
BIN := .venv/bin
# DeepSpeed needs Linux. Elsewhere one process trains, with the engine torch.
ON_LINUX := $(filter Linux,$(shell uname))
PRETRAIN := $(if $(ON_LINUX),$(BIN)/deepspeed --quiet --num_gpus 1 tools/pretrain.py,$(BIN)/python tools/pretrain.py --set parallel.engine=torch)
NEXT := next: `. .venv/bin/activate`, then the commands of docs/commands.md, those of docs/data.md first

.PHONY: help docs quickstart test test-fast test-slurm slurm browser test-matrix test-gpu test-coverage test-transformers test-lm-eval test-attack lint format install clean

help:            ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

quickstart:      ## install, then train a small GAM on the standard library's source and sample it
	@$(PYTHON) tools/bootstrap.py
	@$(BIN)/python tools/prepare_data.py --train python-stdlib --vocab-size 4096 --out data/quickstart
	@$(PRETRAIN) --config configs/quickstart.json
	@echo; echo '$(NEXT)'

test:            ## install, then check style and types and run the tests
	@$(PYTHON) tools/bootstrap.py --extras all
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python tests/all.py -rs --durations=25

test-fast:       ## a part of the tests that covers every package, in under three minutes
	@$(BIN)/python -m pytest $$(grep '^tests/' tests/fast.txt)

test-slurm: slurm ## install Slurm too (as root, Debian or Ubuntu), then run the tests that need it
	@$(PYTHON) tools/bootstrap.py --extras all
	@$(BIN)/python -m pytest -m slurm -rs

slurm:           ## install Slurm alone, which `make test` then tests with
	@{ command -v slurmctld && command -v munged; } >/dev/null || { apt-get update -q && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
	    slurm-wlm munge; }

browser:         ## install Chromium alone (as root, Debian), in which `make test` then opens the reports
	@command -v chromium >/dev/null || { apt-get update -q && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium; }

test-attack:     ## install, then try thousands of damaged files, odd settings and odd flags (half an hour)
	@$(PYTHON) tools/bootstrap.py --extras all
	@$(BIN)/python -m pytest tests/attack --attacks 2500 --attack-seed $${SEED:-1}

test-matrix:     ## install, then resume every engine's checkpoint under every other, and offload to files (minutes)
	@$(PYTHON) tools/bootstrap.py --extras all
	@$(BIN)/python -m pytest -m matrix

test-gpu:        ## install, then run the longer tests of code for GPUs, without a GPU (minutes)
	@$(PYTHON) tools/bootstrap.py --extras all
	@$(BIN)/python -m pytest -m gpu_full

test-coverage:   ## install, then measure how often intervals of laws hold the truth (minutes)
	@$(PYTHON) tools/bootstrap.py --extras all
	@$(BIN)/python -m pytest -m coverage

test-transformers: ## install, then run transformers' own tests of models on exported ones (minutes)
	@$(PYTHON) tools/bootstrap.py --extras all
	@$(BIN)/pip install -q parameterized==0.9.0
	@rm -rf .venv/transformers && mkdir -p .venv/transformers
	@$(BIN)/pip download -q --no-deps --no-binary :all: -d .venv/transformers \
	    $$($(BIN)/pip freeze | grep '^transformers==')
	@tar xzf .venv/transformers/*.tar.gz -C .venv/transformers --strip-components 1
	@HF_HUB_OFFLINE=1 TRANSFORMERS_TESTS=.venv/transformers/tests \
	    $(BIN)/python -m pytest -o addopts=--import-mode=importlib -q -rs \
	    tests/export/test_transformers_own.py

test-lm-eval:    ## install, then run lm-evaluation-harness on exported folders (minutes)
	@$(PYTHON) tools/bootstrap.py --extras all,lm-eval
	@$(BIN)/python -m pytest -m lm_eval

docs:            ## build the site of docs/ in runs/site with a new page of settings; every link is checked
	@$(BIN)/python docs/site/settings_page.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo 'open runs/site/index.html, or run .venv/bin/mkdocs serve, which has a search too'

lint:            ## check style and types alone, in the .venv that `make install` or `make test` made
	@$(BIN)/ruff format --check -q .
	@$(BIN)/ruff check -q .
	@$(BIN)/mypy --no-error-summary

format:          ## format the code, in that .venv too
	@$(BIN)/ruff format -q .
	@$(BIN)/ruff check -q --fix .

install:         ## make .venv with every extra but lm-eval
	@$(PYTHON) tools/bootstrap.py --extras all
	@echo '$(NEXT)'

clean:           ## remove .venv and caches (never runs/ or data/)
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache *.egg-info
