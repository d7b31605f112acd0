.PHONY: demo test test-browser lint format types check bench cards chaos clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_INSTALLED := $(VENV)/.installed-demo

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev,onnx,plots,tracking]"
	touch $@

# Apart from the rest, because gradio holds Pillow and others back.
$(DEMO_INSTALLED): $(INSTALLED)
	$(BIN)/pip install --quiet --editable ".[demo]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-browser: $(DEMO_INSTALLED)
	$(BIN)/python -m pytest -m browser

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.run

cards: $(INSTALLED)
	$(BIN)/esvit zoo cards model_cards --readme README.md

chaos: $(INSTALLED)
	$(BIN)/python -m benchmarks.chaos

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint types test

clean:
	rm -rf $(VENV) outputs
