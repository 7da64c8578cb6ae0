# Needs make and Python 3.11 or newer, nothing else: `make demo` sets up .venv and runs.

JOB ?= examples/digits-mlp.yaml
BIN := .venv/bin
STAMP := .venv/.installed
CODE := api benchmarks distillery examples kdcore migrations storage tests worker

.PHONY: demo serve test faults bench check format lock install clean

demo: $(STAMP)  ## one job from start to end: make demo JOB=examples/mnist-mlp.yaml
	@$(BIN)/python -m distillery.demo $(JOB)

serve: $(STAMP)  ## the embedded service, until Ctrl-C
	@exec $(BIN)/distillery serve

PROCESSES ?= 2
test: $(STAMP)  ## a file's tests stay in one of so many processes
	$(BIN)/pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

ROUNDS ?= 1
SEED ?= 1
FORM ?= deployed
faults: $(STAMP)  ## kill, cut and fill what a service needs, and see that no job is lost: make faults ROUNDS=3 SEED=7 FORM=embedded
	$(BIN)/python -m tests.faults --form $(FORM) --rounds $(ROUNDS) --seed $(SEED)

DATA ?= data
TORCHDISTILL ?=
MEASURE := imports queries api_rate service
bench: $(STAMP)  ## every comparison: tables here, JSON in benchmarks/results; DATA is where MNIST, CIFAR-10 and AG News lie
	@set -e; for name in $(MEASURE); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py; done
	$(BIN)/python -m benchmarks.speed --data $(DATA) $(if $(TORCHDISTILL),--torchdistill $(TORCHDISTILL))
	$(BIN)/python -m benchmarks.speed.losses --data $(DATA)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/docs
	$(BIN)/python .ci/audit.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(STAMP)

# pip is quiet unless something goes wrong; a half-made .venv is made again.
$(STAMP): requirements.lock pyproject.toml
	@set -e; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  $(FIND_PYTHON); \
	  echo "making .venv with $$($$found --version)"; \
	  $$found -m venv --clear .venv || { echo "$(NO_VENV)" >&2; rm -rf .venv; exit 1; }; \
	fi; \
	echo "installing the locked packages into .venv (PyTorch among them: some minutes the first time)"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	touch $@

define FIND_PYTHON
found=; for name in $(PYTHON) python3.13 python3.12 python3.11 python3 python; do \
    if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found=$$name; break; fi; \
  done; \
  if [ -z "$$found" ]; then echo "$(NO_PYTHON)" >&2; exit 1; fi
endef
NO_PYTHON := Distillery needs Python 3.11 or newer and found none; install one, or name it: make PYTHON=/path/to/python3.12
NO_VENV := This Python cannot make a virtual environment: install its venv module (on Debian and Ubuntu: apt install python3-venv)

lock:  ## pin what pyproject.toml asks for; versions that are pinned stay, `make lock UPGRADE=--upgrade` renews them
	@set -e; $(FIND_PYTHON); $$found -m venv .venv/lock; \
	.venv/lock/bin/python -m pip install --quiet --disable-pip-version-check uv; \
	.venv/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --all-extras --group dev \
	  --no-header --no-emit-index-url $(UPGRADE) pyproject.toml --output-file requirements.lock; \
	rm -rf .venv/lock

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
