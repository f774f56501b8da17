# Every target builds the environment it needs; nothing but Python 3.11 (with venv) is expected.
VENV := .venv
PYTHON := $(VENV)/bin/python
KERNELS := $(wildcard engine/kernels/src/*)
INSTALLED := $(VENV)/.installed
DEEPSPEED := --quiet --no-deps --no-build-isolation $(shell grep '^deepspeed=' requirements.lock)
MODEL ?=
WORKERS ?= 2

export TOKENIZERS_PARALLELISM ?= false
# Some environments forbid it. Every process of a test would then compile torch and transformers again: 9 s each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup serve test soak chaos check bench wire lock clean

serve: $(INSTALLED)  ## serve the embedded model (or MODEL=path) at 127.0.0.1:8000
	$(VENV)/bin/distllm serve $(MODEL)

test: export HF_HUB_OFFLINE ?= 1
test: $(INSTALLED)  ## the whole test suite
	$(PYTHON) -m pytest --numprocesses $(WORKERS) --dist loadfile

soak: export HF_HUB_OFFLINE ?= 1
soak: $(INSTALLED)  ## minutes: every way to lose a rank, 10,000 histories of a pipeline, a million damaged frames
	$(PYTHON) -m pytest -m soak

chaos: $(INSTALLED)  ## every fault in every phase of a pipeline's work, scored
	$(PYTHON) -m benchmarks.chaos

check: $(INSTALLED)  ## style, types and the layers of the house
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy src tests benchmarks setup.py
	$(VENV)/bin/lint-imports

bench: $(INSTALLED)  ## the comparison that README.md states
	$(PYTHON) -m benchmarks.compare

wire: $(INSTALLED)  ## score a server's OpenAI wire format: make wire [BASE_URL=http://127.0.0.1:8000]
	$(PYTHON) -m pytest tests/wire $(if $(BASE_URL),--base-url $(BASE_URL))

setup: $(INSTALLED)  ## build .venv from the pinned requirements

$(INSTALLED): requirements.lock pyproject.toml setup.py $(KERNELS)
	@python3 -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "make: python3 must be 3.11 or later, with venv (on Debian: apt install python3-venv)" >&2; exit 1; }
	python3 -m venv $(VENV)
	grep -v '^deepspeed=' requirements.lock | $(PYTHON) -m pip install --quiet --no-compile -r /dev/stdin
	DS_ACCELERATOR=cpu DS_BUILD_SHM_COMM=1 $(PYTHON) -m pip install $(DEEPSPEED) --no-cache-dir || \
		{ echo "make: DeepSpeed's shared-memory operation was not built; ranks will build it when they start" >&2; \
		$(PYTHON) -m pip install $(DEEPSPEED); }
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

lock:  ## pin what pyproject.toml asks for, in a fresh environment
	rm -rf build/lock
	python3 -m venv build/lock
	build/lock/bin/pip install --quiet torch==2.13.0
	build/lock/bin/pip install --quiet --editable '.[dev]' setuptools wheel
	build/lock/bin/pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' > requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info
