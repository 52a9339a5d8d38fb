# Each target sets up what it needs: Python 3.10 or newer, make and, for the data, a network suffice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test test-slow lint proto clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# Get MNIST, train LeNet-5, prune it, and score what is left.
demo: $(READY)
	$(BIN)/dns demo

# Everything that a change must pass. Three processes share the test files, one more than two cores,
# as tests also wait; in their order: otherwise files with few tests come last, some of which take
# longest. What these and the many processes they start import is compiled once, also where an
# environment says otherwise.
test: lint
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# The tests that take longer than a minute.
test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Compile proto/caffe.proto again after a change.
proto:
	$(PYTHON) -m venv $(VENV)/proto
	$(VENV)/proto/bin/pip install --quiet --disable-pip-version-check grpcio-tools==1.62.3 setuptools
	$(VENV)/proto/bin/python tools/compile_proto

clean:
	rm -rf $(VENV)
