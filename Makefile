.PHONY: demo test test-browser test-gpu test-oldest lint format types check docs wheel-smoke audit bench soak \
        reproduce reproduce-quick cards chaos clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[demo,dev,dicom,onnx,plots,tiff,tracking]"
	touch $@

# As `esvit` sets it: threads that wait for each other go to sleep soon.
demo: $(INSTALLED)
	GOMP_SPINCOUNT=1000 $(BIN)/python examples/demo.py

# Two processes, one thread each: most tests are short, and threads that share a core wait for each other.
# In the order of their names, files that take long come before the many short ones that fill the end.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The other files would be read in vain.
test-browser: $(INSTALLED)
	$(BIN)/python -m pytest -m browser $$(grep --recursive --files-with-matches --include="*.py" mark.browser tests)

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.run

soak: $(INSTALLED)
	$(BIN)/python -m benchmarks.soak

# docs/reproduction.md says how to get the data.
DATASET ?= outputs/tiny-imagenet-40
DENSE_DATASET ?= outputs/camvid
MATCHING := $(BIN)/python -m studies.matching
DECIDE := run --dataset $(DATASET) --dense_dataset $(DENSE_DATASET) --decide true

reproduce: $(INSTALLED)
	$(MATCHING) $(DECIDE) --variants '[long V, long position]' --seeds '[1, 2, 3, 4, 5]'
	$(MATCHING) table

QUICK := outputs/reproduction_quick
reproduce-quick: $(INSTALLED)
	$(MATCHING) $(DECIDE) --variants '[small batches V, small batches position]' --seeds '[1]' --output $(QUICK)
	$(MATCHING) table --output $(QUICK) --results_folder $(QUICK)

cards: $(INSTALLED)
	$(BIN)/esvit zoo cards model_cards --page docs/zoo.md --folders examples/checkpoints

chaos: $(INSTALLED)
	$(BIN)/python -m tests.support.chaos

# The oldest version of every dependency that setup.cfg allows, in an environment of its own.
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	sed -n 's/^ *\([A-Za-z0-9_-]*\)\(\[.*\]\)\{0,1\}>=\([0-9.]*\)$$/\1==\3/p' setup.cfg > .venv-oldest/oldest.txt
	.venv-oldest/bin/pip install --quiet --constraint .venv-oldest/oldest.txt --editable ".[demo,dev,dicom,onnx,plots,tiff,tracking]"
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

DOCS_INSTALLED := $(VENV)/.installed-docs
$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/pip install --quiet --editable ".[docs]"
	touch $@

# Dead links and pages without a place in the menu are errors. The site lies in outputs/site.
docs: $(DOCS_INSTALLED)
	$(BIN)/mkdocs build --strict --quiet

# The wheel alone, outside of this folder.
SMOKE := .venv-wheel
wheel-smoke: $(INSTALLED)
	rm -rf dist $(SMOKE)
	$(BIN)/python -m build --quiet
	$(PYTHON) -m venv $(SMOKE)
	$(SMOKE)/bin/pip install --quiet "$$(echo dist/*.whl)[plots]"
	cd / && $(CURDIR)/$(SMOKE)/bin/python -I $(CURDIR)/tests/support/wheel_smoke.py

audit: $(INSTALLED)
	$(BIN)/pip freeze --exclude-editable > $(VENV)/installed.txt
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet pip-audit
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement $(VENV)/installed.txt

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(INSTALLED)
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint types test

clean:
	rm -rf $(VENV) .venv-oldest .venv-audit .venv-wheel dist outputs
