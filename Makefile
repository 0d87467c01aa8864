# Every command that this project has. Needs make, bash and Python 3.11 or newer; all else goes into .venv.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/installed
RUNS := $(or $(GENLAB_OUTPUTS),outputs)

# Waiting threads that spin steal the cores that the other processes work on.
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install browser demo check format test test-slow faults bench smoke headline docs screenshots clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv with genlab and everything that it and its tests need

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "genlab needs Python 3.11 or newer, and $(PYTHON) is not. Try: make install PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || { echo "Making .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv .venv; }
	@echo "Installing genlab and its packages: a few minutes and about 6 GB, most of it torch."
	@set -o pipefail; $(BIN)/python -m pip install -e ".[dev]" | awk ' \
		/^ *(Downloading|Using cached) .*[0-9][0-9][0-9.]* MB/ {print "  " $$1, $$2, $$3, $$4; fflush()} \
		/^Installing collected packages/ {print "  unpacking, about a minute"; fflush()}'; \
	touch $@; echo "Installed in $$SECONDS s. Commands: $(BIN)/genlab --help"

browser: ## Install Chromium for the report's tests, where apt-get may; they are skipped without one
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
		sudo=$$([ "$$(id -u)" = 0 ] || echo "sudo -n"); \
		$$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends chromium fonts-liberation; \
	} >/dev/null 2>&1 || echo "No Chromium could be installed: the report's browser tests will be skipped."

demo: install ## Train a DCGAN on the embedded digits, test it, show where the samples are
	$(BIN)/genlab fit --config experiments/dcgan_digits.yaml
	@run=$$(ls -td $(RUNS)/dcgan_digits/*/ | sed -n 1p); run=$${run%/}; \
	echo "$(BIN)/genlab test $$run"; \
	$(BIN)/genlab test "$$run"; \
	echo "Samples: $$(ls -t "$$run"/samples/*.png | sed -n 1p)"

check: install ## Lint, check the format and the types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## Put the code into the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# By file: each trains its runs once, in one process.
test: install ## Run the default test-suite; ARGS="-k digits" selects
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile $(ARGS)

test-slow: install ## Run the longer proofs
	$(BIN)/pytest -m slow $(ARGS)

faults: install ## Plant every fault of docs/faults.md; a line a row; ROWS=6,7 some, KILLS=500 more kills
	OMP_NUM_THREADS=1 KILLS=$(KILLS) $(BIN)/pytest -n 2 --dist loadfile -m "fault and not bench" \
		--faults $(or $(ROWS),all) $(ARGS)

bench: install ## Run the measurements and print them
	$(BIN)/pytest -m bench -s $(ARGS)

smoke: install ## Run one batch of every experiment
	$(BIN)/pytest tests/test_experiments.py $(ARGS)

headline: install ## Train and test the README's comparison again: 14 families, 5 seeds, 90 s each; 2 to 3 hours
	$(BIN)/genlab bench digits --name digits-90s --budget 90s --seeds 5 --trials 3 --jobs 2 \
		--families gan,dcgan,autoencoder,vae,cvae,realnvp,glow,ddpm,vpsde,flow_matching,pixelcnn,pixelrnn,vqprior,fsq_maskgit
	rm -rf experiments/results/digits-90s
	$(BIN)/genlab records $(RUNS)/bench/digits-90s -o experiments/results/digits-90s --samples
	$(BIN)/genlab compare --refresh README.md
	$(BIN)/genlab compare --refresh experiments/results/README.md

docs: install ## Build the documentation as a site in site/; a broken link ends it
	@$(BIN)/python -c "import material, mkdocstrings" 2>/dev/null || $(BIN)/python -m pip install -q -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet -f docs/site/mkdocs.yml
	@echo "Open site/index.html, or with a search: $(BIN)/python -m http.server -d site"

screenshots: install ## Make the pictures of docs/ anew; ARGS="report sheet" some of them
	OMP_NUM_THREADS=1 $(BIN)/python docs/site/screenshots.py $(ARGS)

clean: ## Remove the environment, caches and builds; runs in outputs/ stay
	rm -rf .venv build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find genlab tests -name __pycache__ -type d -prune -exec rm -rf {} +
