PYTHON ?= python3
RUN = . .venv/bin/activate &&
PYTEST = $(RUN) python -m pytest -n auto --maxprocesses 4 --dist worksteal
PIP = pip install --quiet --quiet --disable-pip-version-check -c constraints.txt
METHODS ?= all
SEEDS ?= 1 2 3

.PHONY: help quickstart test test-fast lint results clean

help:
	@echo "make quickstart   set up, align a small model by Diffusion-DPO, compare it with what it was"
	@echo "make test         set up, run the whole suite"
	@echo "make test-fast    the suite without its slow tests"
	@echo "make lint         ruff"
	@echo "make results      train, test and write docs/results.md: METHODS='dpo ipo' SEEDS='1 2' (default: all methods, seeds 1 2 3)"
	@echo "make clean        remove .venv"

.venv/ready: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	@echo "installing into .venv; this takes some minutes"
	@$(RUN) $(PIP) torch
	@$(RUN) $(PIP) -e '.[test]'
	touch $@

quickstart: .venv/ready
	$(RUN) python -m lit_align fit --config shapes/dpo.yaml
	$(RUN) python -m lit_align test --config shapes/dpo.yaml --ckpt_path last

test: .venv/ready
	$(PYTEST)

test-fast: .venv/ready
	$(PYTEST) -m 'not slow'

lint: .venv/ready
	$(RUN) ruff check . && ruff format --check lit_align callbacks

results: .venv/ready
	$(RUN) python -m lit_align.studies.results --methods $(METHODS) --seeds $(SEEDS)

clean:
	rm -rf .venv *.egg-info
