PYTHON ?= python3
RUN = . .venv/bin/activate &&

.PHONY: quickstart test test-fast clean

.venv/ready: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(RUN) pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(RUN) pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

quickstart: .venv/ready
	$(RUN) python -m lit_align fit --config shapes/dpo.yaml
	$(RUN) python -m lit_align test --config shapes/dpo.yaml --ckpt_path last

test: .venv/ready
	$(RUN) python -m pytest

test-fast: .venv/ready
	$(RUN) python -m pytest -m 'not slow'

clean:
	rm -rf .venv *.egg-info
