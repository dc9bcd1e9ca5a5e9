# make demo [SPEAKER=path.mp4]   set up, enrol the speaker if that has not been done, serve the page
# make check                     lint, type-check and run the fast tests: for every edit, in less than two minutes
# make test                      lint, type-check and run the whole suite
# make gpu-check                 on a machine with an NVIDIA GPU: its tests, compute-sanitizer and benchmarks
# make setup                     .venv with everything; as root on Debian also system packages and the agents' environments

PYTHON ?= python3.11
SPEAKER ?= demo/speaker.mp4
PORT ?= 8080
# As it was typed, for the shell: `make` would read a `$` in it, and the shell everything else.
export DEMO_SPEAKER := $(value SPEAKER)
export DEMO_PORT := $(value PORT)
unexport SPEAKER PORT

# Two processes of pytest: much of a streaming test is waiting. The tests of a file share fixtures, so they stay together.
PYTEST := .venv/bin/pytest -n 2 --dist loadfile

.PHONY: setup demo lint check test gpu-check

setup: .venv/.ready

.venv/.ready: pyproject.toml tools/setup tools/agents tools/players
	tools/setup $(PYTHON)
	touch $@

demo: setup
	tools/demo "$$DEMO_SPEAKER" "$$DEMO_PORT"

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

check: lint
	$(PYTEST) -m "not slow and not browser and not gpu"

test: lint
	$(PYTEST) -rs --durations=20 --cov=engine --cov=precompute --cov=streaming --cov-report=term

gpu-check:
	tools/gpu-check
