# `make run` and `make test` need Python 3.11 or newer and make, nothing else. Everything is installed into .venv; the
# stamp files in it are written last, so that an interrupted installation is taken up again, and say when it is done.

BIN := .venv/bin
RUN_STAMP := .venv/.installed
UI_STAMP := .venv/.installed-ui
DEV_STAMP := .venv/.installed-dev
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable

# A .venv that was copied along with the folder, or whose Python is gone, still has stamps, but does not work here.
ifneq ($(wildcard $(RUN_STAMP)),)
ifneq ($(shell cat $(RUN_STAMP)) $(shell $(BIN)/python -c 'print("runs")' 2>&1),$(CURDIR) runs)
$(shell rm -f $(RUN_STAMP) $(UI_STAMP) $(DEV_STAMP))
endif
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test bench conformance gradients lint format typecheck check-python clean

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

# Windows can be shown where a display is named, and on macOS.
SHOWS := $(or $(DISPLAY),$(WAYLAND_DISPLAY),$(filter Darwin,$(shell uname -s)))

run: $(if $(SHOWS),$(UI_STAMP),$(RUN_STAMP)) ## open the editor on a tuned classifier; without a display, run it in the terminal
ifneq ($(SHOWS),)
	@echo 'There is a display: opening snippets/digits_moe.yaml in the editor. Without one: qmoe demo.'
	@$(BIN)/qmoe edit snippets/digits_moe.yaml
else
	@echo 'There is no display (neither DISPLAY nor WAYLAND_DISPLAY is set): running in the terminal what the editor would show.'
	@$(BIN)/qmoe demo --picture digits_experts.png
endif

test: $(DEV_STAMP) ## check style and types, and run the tests
	$(BIN)/python -m ruff check --quiet .
	$(BIN)/python -m ruff format --quiet --check .
	$(BIN)/python -m mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet --numprocesses 2 --ignore tests/test_cluster.py --durations 5
	$(BIN)/python -m pytest --quiet tests/test_cluster.py # a cluster of its own processes, which wants the machine alone

bench: $(DEV_STAMP) ## measure speed and write docs/benchmarks.md; QUICK=1 takes a part of it
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

gradients: $(DEV_STAMP) ## check every gradient on ONNX's own node tests and write docs/gradients.md
	$(BIN)/python tests/gradient_table.py

conformance: $(DEV_STAMP) ## run ONNX's own node tests on both backends and write docs/conformance.md
	$(BIN)/python tests/conformance.py

lint: $(DEV_STAMP) ## check style
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

format: $(DEV_STAMP) ## put the code into the project's style
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

typecheck: $(DEV_STAMP) ## check types
	$(BIN)/python -m mypy

clean: ## remove .venv and everything that tools left behind
	rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist

# Prints the first Python that can make the environment, or says in a sentence what to install.
FIND_PYTHON = \
	lacking=; found=; \
	for python in python3.13 python3.12 python3.11 python3 python; do \
		$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		if $$python -c 'import ensurepip, venv' 2>/dev/null; then found=$$python; break; fi; \
		lacking=$${lacking:-$$python}; \
	done; \
	if test -n "$$found"; then \
		:; \
	elif test -n "$$lacking"; then \
		echo "$$lacking cannot make virtual environments: install the system package $$lacking-venv" \
			"(Debian, Ubuntu: sudo apt-get install $$lacking-venv)." >&2; exit 1; \
	else \
		echo "QMoE Studio needs Python 3.11 or newer and found $$(python3 --version 2>/dev/null || echo none):" \
			"install a newer one (Debian 12, Ubuntu 24.04 or later: sudo apt-get install python3 python3-venv)." >&2; exit 1; \
	fi

check-python: # for .ci/run: is there a Python that will do?
	@$(FIND_PYTHON); echo $$found

# What an earlier, interrupted call left in .venv is used if it has a pip that runs, and made anew if not.
define SET_UP
	@if ! $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		$(FIND_PYTHON); \
		echo "Making .venv with $$($$found --version) ..."; \
		$$found -m venv --clear .venv; \
	fi
	@echo "Installing $(1) into .venv ..."
	@$(INSTALL) '$(1)'
endef

$(RUN_STAMP): pyproject.toml
	$(call SET_UP,.)
	@echo '$(CURDIR)' > $@

$(UI_STAMP): pyproject.toml
	$(call SET_UP,.[ui])
	@echo '$(CURDIR)' > $(RUN_STAMP)
	@touch $@

$(DEV_STAMP): pyproject.toml
	$(call SET_UP,.[dev])
	@echo '$(CURDIR)' > $(RUN_STAMP)
	@touch $@
