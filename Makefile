# make demo             train three ways side by side and draw report.html
# make test             everything that CI runs: lint, types, tests, tests on the oldest supported TRL and on verl
# make help             the rest

PYTHON ?= python3
VENV ?= .venv
OLD_VENV ?= .venv-oldest-trl
MUTANTS_VENV ?= .venv-mutants
VERL_VENV ?= .venv-verl
# test processes at a time; tests of one file share fixtures and stay together
JOBS ?= 2
PYTEST = -m pytest --numprocesses $(JOBS) --dist loadfile
BIN := $(VENV)/bin
# one thread a process: on few cores, processes side by side beat threads
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help demo tracking peers frontier simulator cost results install test test-current test-oldest-trl test-verl mutants lint \
	types format constraints clean

help:
	@sed -n 's/^# make/make/p' Makefile
	@echo "make tracking         the tracking study, hours of work; stop it and go on at will"
	@echo "make peers            published methods on the same work, hours of it; the same holds"
	@echo "make frontier         reward at equal entropy on two tasks, hours of it; the same holds"
	@echo "make install          the pinned environment in $(VENV)"
	@echo "make simulator cost   the loops on a simulator; what control costs in time"
	@echo "make results          every table and figure of the documentation, from the result files"
	@echo "make test-current     tests in the pinned environment only; ARGS goes to pytest"
	@echo "make test-oldest-trl  the adapter's tests on the oldest TRL that is supported"
	@echo "make test-verl        tests that need verl, in an environment of its own; ARGS goes to pytest"
	@echo "make mutants          mutation testing of the core: what no test would notice"
	@echo "make lint types       ruff and mypy"
	@echo "make format           ruff format"
	@echo "make constraints      resolve constraints.txt anew (needs uv)"
	@echo "make clean            remove the virtual environments"

demo: $(VENV)/.ready
	$(BIN)/entrocraft compare configs/demo.yaml

tracking: $(VENV)/.ready
	$(BIN)/entrocraft compare benchmarks/tracking.yaml

peers: $(VENV)/.ready
	$(BIN)/entrocraft compare benchmarks/peers.yaml
	$(BIN)/entrocraft compare benchmarks/variants.yaml

frontier: $(VENV)/.ready
	$(BIN)/entrocraft compare benchmarks/frontier.yaml

simulator cost: $(VENV)/.ready
	$(BIN)/python -m benchmarks.$@

results: $(VENV)/.ready
	$(BIN)/python -m benchmarks.tables

install: $(VENV)/.ready

# torch first and by itself: everything else then keeps the build that is there
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "entrocraft needs Python 3.10 or newer; set PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

test: lint types test-current test-oldest-trl test-verl

test-current: $(VENV)/.ready
	$(BIN)/python $(PYTEST) $(ARGS)

# the adapter's tests once more on the oldest TRL that is supported
test-oldest-trl: $(OLD_VENV)/.ready
	$(OLD_VENV)/bin/python $(PYTEST) tests/trl $(ARGS)

$(OLD_VENV)/.ready: pyproject.toml constraints.txt constraints-oldest-trl.txt
	$(PYTHON) -m venv $(OLD_VENV)
	$(OLD_VENV)/bin/python -m pip install --quiet --constraint constraints-oldest-trl.txt torch
	$(OLD_VENV)/bin/python -m pip install --quiet --constraint constraints-oldest-trl.txt --editable '.[dev]'
	@touch $@

# verl pins transformers, so it has an environment of its own
test-verl: $(VERL_VENV)/.ready
	$(VERL_VENV)/bin/python $(PYTEST) --dist load tests/verl entrocraft/verl $(ARGS)

$(VERL_VENV)/.ready: pyproject.toml constraints.txt constraints-verl.txt
	$(PYTHON) -m venv $(VERL_VENV)
	$(VERL_VENV)/bin/python -m pip install --quiet --constraint constraints-verl.txt torch
	$(VERL_VENV)/bin/python -m pip install --quiet --constraint constraints-verl.txt --editable '.[dev,verl]'
	@touch $@

# from scratch: mutmut by itself does not try survivors again when only tests have changed
mutants: $(MUTANTS_VENV)/.ready
	rm -rf mutants
	$(MUTANTS_VENV)/bin/mutmut run --max-children $(JOBS)
	$(MUTANTS_VENV)/bin/python benchmarks/mutants.py

$(MUTANTS_VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(MUTANTS_VENV)
	$(MUTANTS_VENV)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(MUTANTS_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,mutants]'
	@touch $@

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

format: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch is held at one release; its CUDA companions are left to it
RESOLVE = uv pip compile pyproject.toml --universal --python-version 3.10 --extra dev --extra mutants --quiet \
	--no-header --no-annotate --constraint .pins.txt --output-file .resolved.txt
constraints:
	printf 'torch==2.13.0\n' > .pins.txt
	$(RESOLVE) && grep -vE '^(nvidia|cuda|triton)' .resolved.txt > constraints.txt
	printf 'torch==2.13.0\ntrl==1.5.1\ntransformers==4.57.6\n' > .pins.txt
	rm .resolved.txt && $(RESOLVE) && \
		grep -vE '^(nvidia|cuda|triton)' .resolved.txt > constraints-oldest-trl.txt
	printf 'torch==2.13.0\nverl==0.9.1\n' > .pins.txt
	rm .resolved.txt && $(RESOLVE) --extra verl && \
		grep -vE '^(nvidia|cuda|triton)' .resolved.txt > constraints-verl.txt
	rm .pins.txt .resolved.txt

clean:
	rm -rf $(VENV) $(OLD_VENV) $(VERL_VENV) $(MUTANTS_VENV)
