# make env | demo | test | gpu | check | format | clean

VENV := .venv
PYTHON := $(VENV)/bin/python
export OMP_NUM_THREADS ?= 1

.PHONY: env demo test gpu check format clean

env: $(VENV)/.installed

# Any Python 3.12 that runs: on the PATH, or one of pyenv's (whose shims need not work).
$(VENV)/.installed: setup.py constraints.txt
	@python=$$(for candidate in python3.12 python3 python "$$HOME"/.pyenv/versions/3.12*/bin/python3 \
	    "$${PYENV_ROOT:-/nowhere}"/versions/3.12*/bin/python3; do \
	  "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null \
	    && { echo "$$candidate"; break; }; done); \
	test -n "$$python" || { echo "error: no Python 3.12 found; install it (Debian, Ubuntu: apt install \
	python3.12 python3.12-venv; or: pyenv install 3.12; or: uv python install 3.12)" >&2; exit 2; }; \
	test -x $(PYTHON) || "$$python" -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --upgrade pip
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[dev,eval]'
	@touch $@

# The whole pipeline on this machine; see examples/tiny_cpu/README.md.
demo: env
	$(PYTHON) -m examples.tiny_cpu.run

test: env
	$(PYTHON) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# What needs a GPU: tests, benchmarks, an experiment; see docs/gpu.md.
gpu: env
	PYTHON=$(PYTHON) examples/small_gpu/run_on_gpu.sh

check: env
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: env
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean:
	rm -rf runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
