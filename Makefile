# make demo, make test: each makes .venv first (about 3 minutes, 7 GB) if it is not there yet.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
export PYTHONWARNINGS ?= ignore
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: setup demo test coverage sync docs wheel licences check

demo: setup          ## prune a small network on the digits data
	@$(BIN)/oamip

test: setup          ## every notebook and every test
	$(BIN)/python -m pytest -q tests

coverage: setup      ## the same, and which lines of the package were run
	@rm -rf build/coverage; mkdir -p build/coverage
	$(BIN)/python -m coverage run -m pytest -q tests
	@$(BIN)/python -m coverage combine -q
	@$(BIN)/python -m coverage report

sync: setup          ## modules and README.md are what the notebooks say
	@$(BIN)/python tools/sync.py
	@$(BIN)/python tools/docs.py --check-readme

docs: setup          ## README.md and _docs/*.html, every internal link checked
	@$(BIN)/python tools/docs.py

wheel: setup         ## the wheel in an empty environment: command, demo, tests; PYTHONS="python3.12 ..." for others
	@$(BIN)/python tools/check_wheel.py $(PYTHONS)

licences: setup      ## of all that the package needs at run time; fails on one that is not allowed
	@$(BIN)/python tools/licences.py

check: sync test docs wheel

setup: .venv/.done

# -qq: warnings about package locations stay out, errors do not
.venv/.done: settings.ini setup.py
	@test -x $(BIN)/python || { echo "making .venv and installing into it: about 3 minutes, 7 GB"; \
	  $(PYTHON) -m venv .venv || { echo "no virtual environment; on Debian and Ubuntu: apt install python3-venv"; rm -rf .venv; exit 1; }; }
	@$(BIN)/python -m pip install -qq -e '.[dev]'
	@touch $@
