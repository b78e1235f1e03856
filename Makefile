# Every target works from a fresh clone: the ones that need packages set up .venv first. `make` alone lists them.
# Written for GNU make 3.81 too, the one macOS ships. Extra arguments go through ARGS: make debug ARGS="-p epochs 5"

UV_VERSION := 0.13.8
BIN := .venv/bin
STAMP := .venv/.installed-in
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
BENCHMARKS := $(filter-out benchmarks/bench_peers.py,$(wildcard benchmarks/bench_*.py))
PEERS := benchmarks/requirements-peers.txt
# One file of tests a core at a time, each with one thread: fixtures that train a model are made once a file.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile
NBSTRIPOUT := $(BIN)/nbstripout --extra-keys "metadata.papermill cell.metadata.papermill metadata.widgets"

# A Python named by hand is used or refused, never replaced; unnamed, newer ones than an old python3 are looked for.
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)

# The tests start hundreds of processes; without compiled modules each of them compiles PyTorch's thousands of files anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup debug lab test check exhaustive lint types bench bench-peers lock FORCE

help: ## list the targets
	@echo "usage: make TARGET [ARGS=\"...\"] [PYTHON=python3.12]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-11s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## make .venv with the pinned packages (every other target does so when needed)
	@:

debug: $(STAMP) ## run notebooks/debug_run.ipynb headlessly; results and plots go to outputs/
	@$(BIN)/codeq notebook debug_run $(ARGS)

lab: $(STAMP) ## open JupyterLab, on this computer only and protected by its token
	@$(BIN)/jupyter lab --ip=127.0.0.1 $(ARGS)

test: $(STAMP) ## the tests to run after every change (minutes)
	@$(BIN)/pytest $(PARALLEL) $(ARGS)

# Three at a time, because many of them wait for other processes.
check: $(STAMP) ## the slow tests: whole trainings, every notebook
	@$(BIN)/pytest -n 3 --dist worksteal -m "slow and not exhaustive" $(ARGS)

exhaustive: $(STAMP) ## the slowest tests: more seeds, more kills, the largest networks
	@$(BIN)/pytest -n 3 --dist worksteal -m exhaustive $(ARGS)

lint: $(STAMP) ## style of code and notebooks, and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(if $(NOTEBOOKS),$(NBSTRIPOUT) --verify $(NOTEBOOKS))
	@$(BIN)/mypy

types: $(STAMP) ## static types of codeq/
	@$(BIN)/mypy

bench: $(STAMP) ## every benchmark, one after the other
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script $(ARGS); done

bench-peers: .venv-peers/.installed ## codeq beside other packages, which go into .venv-peers
	@.venv-peers/bin/python benchmarks/bench_peers.py $(ARGS)

# An environment of its own that sees the packages of .venv behind its own, so that the other packages change neither
# .venv nor the version of torch. One that cannot be installed is listed by the benchmark.
.venv-peers/.installed: $(STAMP) $(PEERS)
	@set -e; rm -rf .venv-peers; \
	$(BIN)/uv venv --quiet --python $(BIN)/python .venv-peers; \
	where='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	printf 'import site; site.addsitedir("%s")\n' "$$($(BIN)/python -c "$$where")" \
	  > "$$(.venv-peers/bin/python -c "$$where")/venv.pth"; \
	grep -v '^#' $(PEERS) | while read -r pin; do \
	  $(BIN)/uv pip install --quiet --python .venv-peers/bin/python --no-deps "$$pin" < /dev/null \
	    || echo "$$pin is not installed; what needs it is listed as not measured." >&2; \
	done; \
	touch $@

# Pins that still fit are kept; ARGS=--upgrade moves all of them to the newest release.
lock: $(STAMP) ## resolve requirements.lock anew after a change of pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-header --no-annotate \
	  $(ARGS) --output-file requirements.lock pyproject.toml > /dev/null
	@{ echo "# Every package of pyproject.toml and its extras, pinned for all platforms and every Python from 3.11 on."; \
	  echo "# Written by \`make lock\`; not edited by hand."; \
	  cat requirements.lock; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock

# The scripts of a virtual environment name the folder they were made in: after the checkout was moved or copied they
# would run the code of the old place. The stamp holds that folder, so such a .venv is made anew.
ifneq ($(shell cat $(STAMP) 2> /dev/null),$(CURDIR))
$(STAMP): FORCE
endif
FORCE:

$(STAMP): requirements.lock pyproject.toml
	@set -e; began=$$(date +%s); \
	if [ -f $(STAMP) ] && [ "$$(cat $(STAMP))" != "$(CURDIR)" ]; then rm -rf .venv; fi; \
	if ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then \
	  python=; \
	  for candidate in $(PYTHONS); do \
	    if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1; then \
	      python=$$candidate; break; \
	    fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "codeq needs Python 3.11 or newer with its venv module (on Debian and Ubuntu: apt install python3-venv);" \
	      "none of these is one: $(PYTHONS). Name another by: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	  fi; \
	  "$$python" -m venv --clear .venv; \
	fi; \
	echo "Setting up .venv (PyTorch and some 240 packages, several GB: seconds from a cache, minutes from the network) ..."; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --requirement requirements.lock; \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .; \
	printf '%s' "$(CURDIR)" > $(STAMP); \
	echo "Set up in $$(( $$(date +%s) - began )) s."
