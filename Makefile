# make demo [SPEAKER=path.mp4]   set up, enrol the speaker if that has not been done, serve the page
# make test                      set up, lint, type-check and run the suite
# make gpu-check                 on a machine with an NVIDIA GPU: its tests, compute-sanitizer and benchmarks
# make setup                     .venv with everything, and system packages where this runs as root on Debian

PYTHON ?= python3.11
SPEAKER ?= demo/speaker.mp4
PORT ?= 8080
# In a folder named after the whole path: two videos called me.mp4 are two people.
AVATAR := build/$(firstword $(shell printf %s '$(abspath $(SPEAKER))' | cksum))/$(basename $(notdir $(SPEAKER))).avatar

.PHONY: setup demo test gpu-check

setup: .venv/.ready

.venv/.ready: pyproject.toml tools/setup tools/agents
	tools/setup $(PYTHON)
	touch $@

$(AVATAR): $(SPEAKER) $(wildcard engine/assets/*.safetensors) | .venv/.ready
	mkdir -p $(dir $@)
	.venv/bin/precompute $(SPEAKER) -o $@

demo: setup $(AVATAR)
	.venv/bin/personastream serve $(AVATAR) --samples demo --port $(PORT)

test: setup
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/pytest --cov=engine --cov=precompute --cov=streaming --cov-report=term

gpu-check: setup
	tools/gpu-check
