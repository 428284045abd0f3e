# make quickstart   trains a small model on this machine's CPU, end to end
# make example      a real chat model learns to keep to instructions, on the CPU (downloads 93 MB)
# make test         runs the tests              make test-fast  those that need neither an engine nor several processes
# make lock         writes requirements/*.txt again from setup.py's bounds (needs uv)
# The others make the environment in .venv, or bring it up to date (Linux, Python 3.11 to 3.13; about 4 GB).

BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHON UPGRADE

.PHONY: env lock quickstart example test test-fast style quality bench clean

env:
	@bash requirements/install.sh

lock:
	bash requirements/lock.sh

quickstart: env
	bash examples/quickstart/run.sh

example: env
	bash examples/instructions/run.sh

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
	rm -rf .pytest_cache .ruff_cache
