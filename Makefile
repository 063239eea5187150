# make demo | make test | make test-slow | make check | make bench: each sets up .venv by itself.
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
STAMP := .venv/.installed

.PHONY: demo test test-slow check bench transform-table clean

demo: $(STAMP)
	$(BIN)/medplat demo --out demo-out

test: $(STAMP)
	$(BIN)/python -m pytest -n auto -q

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile -q -m slow

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[ml,dev,bench]"
	$(BIN)/python kernels/bench

transform-table: $(STAMP)
	$(BIN)/python -m medplat.transforms

clean:
	rm -rf .venv demo-out dist build

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'medplat needs Python 3.11 or newer'"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[ml,dev]"
	$(BIN)/python -c "open('$(STAMP)', 'w').close()"
