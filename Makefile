# make quickstart   trains a small model on this machine's CPU, end to end
# make test         runs the tests              make test-fast  those that need neither an engine nor several processes
# Both make their own environment in .venv first (Linux, Python 3.11; about 4 GB).

PYTHON ?= python3.11
BIN := .venv/bin
TORCH := 2.13.0
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: env quickstart test test-fast style quality bench clean

env: .venv/.complete

# vLLM's CPU build needs torch's CPU build: from what pip is set up to search, else with uv, which knows where it is.
# torchvision and its kin, which vLLM pulls in, are CUDA builds that break imports beside it; text needs none of them.
.venv/.complete: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade "pip>=25"
	$(BIN)/pip install --quiet torch==$(TORCH)+cpu \
		|| { $(BIN)/pip install --quiet uv && $(BIN)/uv pip install --torch-backend cpu torch==$(TORCH); }
	$(BIN)/pip install --quiet --editable ".[cpu,eval,dev]"
	$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

quickstart: env
	bash examples/quickstart/run.sh

test: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

test-fast: env
	$(BIN)/python -m pytest -m "not slow"

style: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: env
	for name in train_step memory_vs_length tokenizing data_generation; do \
		PYTHONPATH=on_policy_data_gen $(BIN)/python benchmarks/$$name.py --out benchmarks/$$name.md || exit 1; \
	done

clean:
	rm -rf outputs .pytest_cache .ruff_cache
