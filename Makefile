# Two commands: `make book` renders the book, `make test` checks everything. `make lab` opens the chapters.
# Needs Python 3.11 or later and make; the rest is installed into .venv.

PROFILE ?= small
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; done; echo python3)
BIN := .venv/bin
VENDOR := book/_static/vendor/.complete

# One thread a process: two spinning threads on a busy machine are many times slower than one.
export OMP_NUM_THREADS = 1
export MKL_NUM_THREADS = 1
export OPENBLAS_NUM_THREADS = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help book test lab clean
help:
	@echo "make book [PROFILE=smoke|small|full]   render the book"
	@echo "make test                              lint, tests, the book at smoke, checks of its pages"
	@echo "make lab                               JupyterLab; a click on a chapter opens a notebook"
	@echo "make clean                             remove what was built (your runs stay)"

book: .venv/.ready $(VENDOR)
	@$(BIN)/rankscale book --profile $(PROFILE)

# Every step runs whatever the one before it found, and pytest's summary closes the output. The book is built
# before the tests so that its progress shows; tests/test_book.py fails if it did not build.
test: .venv/.ready-test $(VENDOR)
	@status=0; \
	echo "== lint"; $(BIN)/ruff check . && $(BIN)/ruff format --check . || status=1; \
	echo "== every chapter and the book, at smoke"; $(BIN)/rankscale book --profile smoke || status=1; \
	echo "== tests"; $(BIN)/python -m pytest -n 2 --dist loadgroup --need-real-audio tests || status=1; \
	exit $$status

lab: .venv/.ready $(VENDOR)
	@$(BIN)/jupyter lab chapters

clean:
	rm -rf _build runs/book runs/staged book/_static/vendor .pytest_cache .ruff_cache

.venv/.created:
	@$(PYTHON) tools/check_machine.py
	@echo "Creating .venv with $(PYTHON) ..."
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.ready: .venv/.created requirements.txt constraints.txt pyproject.toml tools/open_chapters_as_notebooks.py
	@echo "Installing the pinned packages into .venv (once; about 6 GB, a few minutes) ..."
	@$(BIN)/python -m pip install --quiet --progress-bar off -r requirements.txt -c constraints.txt
	@$(BIN)/python -m pip install --quiet --no-deps -e .
	@$(BIN)/python tools/open_chapters_as_notebooks.py
	@touch $@

.venv/.ready-test: .venv/.ready requirements-test.txt constraints.txt
	@echo "Installing what the tests need ..."
	@$(BIN)/python -m pip install --quiet --progress-bar off -r requirements-test.txt -c constraints.txt
	@touch $@

$(VENDOR): .venv/.ready tools/fetch_assets.py
	@$(BIN)/python tools/fetch_assets.py
	@touch $@
