# Everything a newcomer needs: `make demo` shows the main job, `make test` proves it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch goes in first and alone: a later resolver run then finds it satisfied and leaves its build (CPU or CUDA) alone.
TORCH := $(shell sed -n 's/^\(torch==.*\)$$/\1/p' constraints.txt)

.PHONY: env demo test lint format bench audit clean

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "groundstream needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version): set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "$(PYTHON) cannot make an environment: install python3-venv (apt install python3-venv) and try again"; exit 1; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: env
	$(BIN)/groundstream demo --out out/demo

test: env lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=
	$(BIN)/coverage report --format=total | sed 's/^/coverage in percent: /'

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell *.md groundstream.py streamer detectors trackers sinks benchmarks docker

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Not part of `make test`: pip-audit asks PyPI and OSV for known faults of the pinned versions.
audit: env
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[audit]'
	$(BIN)/bandit --quiet --recursive -ll -ii sinks streamer detectors trackers groundstream.py
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

bench: env
	$(BIN)/groundstream bench pipeline

clean:
	rm -rf $(VENV) out build *.egg-info .mypy_cache .ruff_cache .pytest_cache
