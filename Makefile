# `make demo` and `make test` each do all set-up on a machine that has only Python 3.11 and make.
#
#   make test TORCH_INDEX_URL=...   another package index for torch, such as PyTorch's own CPU builds
#   make demo DEMO_ARGS="--help"    what else the demo takes

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
TORCH_INDEX_URL ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
TEST_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
# Everything that a test run writes stays in the checkout.
SCRATCH := $(CURDIR)/.cache/tmp
export NO_MKDOCS_2_WARNING := 1
CODE := src tests examples docs $(wildcard benchmarks)

.PHONY: help demo test faults portable bench style quality lint types pages docs constraints clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# --- set-up: torch first, so that TORCH_INDEX_URL concerns torch alone; a stamp for each set of extras ---

$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, found {sys.version}")'
	@echo "setting up $(VENV): torch (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt pip
	@$(PIP) install -c constraints.txt torch $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL))
	@touch $@

$(VENV)/.dev $(VENV)/.demo: $(VENV)/.%: $(VENV)/.torch pyproject.toml constraints.txt
	@echo "setting up $(VENV): realm-hf[$*]"
	@$(PIP) install -c constraints.txt -e '.[$*]'
	@touch $@

# --- the README's two commands ---

demo: $(VENV)/.demo  ## train on the CIA World Factbook: runs/demo/report.html in about 10 minutes
	@$(BIN)/python examples/fetch_minilm.py > /dev/null
	$(BIN)/python examples/demo.py $(DEMO_ARGS)

test: $(VENV)/.dev  ## all tests, no network
	@mkdir -p $(SCRATCH)
	OMP_NUM_THREADS=1 TMPDIR=$(SCRATCH) $(BIN)/python -m pytest -q -n 2 --dist worksteal $(TEST_ARGS)

# --- for contributors ---

faults: $(VENV)/.dev  ## kill the store, the builder and the trainer at every point
	@mkdir -p $(SCRATCH)
	OMP_NUM_THREADS=1 TMPDIR=$(SCRATCH) $(BIN)/python -m pytest -q --full tests/faults $(TEST_ARGS)

portable: $(VENV)/.dev  ## the numeric tests under other processors' kernels: about five minutes
	@mkdir -p $(SCRATCH)
	TMPDIR=$(SCRATCH) $(BIN)/python tests/portable.py $(TEST_ARGS)

bench: $(VENV)/.dev  ## side by side with the old port, FAISS and sentence-transformers: benchmarks/README.md
	$(BIN)/python benchmarks/bench.py $(BENCH_ARGS)

style: $(VENV)/.dev  ## format, and fix what can be fixed
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

quality: lint types pages  ## format, lint, types, layers, docs: changes nothing; -j2 makes two at once

lint: $(VENV)/.dev
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/mypy

pages: $(VENV)/.dev
	@# Not --quiet: it would drop the warnings before --strict counts them.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@# A link in a place that mkdocstrings escapes is shown as a tag, and --strict says nothing.
	@! grep -rlE '&lt;/?autoref|\[<code>' site --include=*.html || { echo "these pages show raw links"; exit 1; }

docs: $(VENV)/.dev  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

constraints: $(VENV)/.dev  ## write constraints.txt from what is installed
	@{ echo "# The exact versions that CI and \`make\` install (Python 3.11). Made with \`make constraints\` after a tested upgrade."; \
	  $(BIN)/python -m pip freeze --all --exclude-editable | sed -E 's/^(torch==[0-9.]+)\+.*/\1/' | grep -viE '^setuptools=|^nvidia-|^triton|^cuda-'; } > $@.new
	@mv $@.new constraints.txt

clean:  ## remove what make made, runs/ excepted
	rm -rf $(VENV) .cache site build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache src/*.egg-info
