PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo test coverage stress audit clean

help:
	@echo 'make demo   distil a small PSPNet on generated street scenes, 9 to 12 minutes on 2 idle CPU cores'
	@echo 'make test   lint and tests'
	@echo 'make coverage the tests, with the share of the lines that they run'
	@echo 'make stress what takes longer: kills, long runs, many processes; half an hour'
	@echo 'make audit  known vulnerabilities of the pinned packages'
	@echo 'make clean  remove the environment, the generated scenes and the results of the demo'

# The stamp is younger than what it was made from only when the installation went through.
$(VENV)/.installed: setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12) and \
	"error: Python 3.10 to 3.12 is needed. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	@echo '== Installing into $(VENV)'
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[mmseg,study,dev]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/python tools/demo.py

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

coverage: $(VENV)/.installed
	$(BIN)/pytest --cov --cov-report=term --numprocesses auto --dist loadfile --no-loadscope-reorder

stress: $(VENV)/.installed
	HYPOTHESIS_PROFILE=stress $(BIN)/pytest -v tests/stress tests/losses/test_properties.py

audit: $(VENV)/.installed
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --disable-pip-version-check -q pip-audit
	$(BIN)/pip freeze --exclude-editable | $(VENV)/audit/bin/pip-audit --no-deps --disable-pip -r /dev/stdin

clean:
	rm -rf $(VENV) data/street_scenes work_dirs/demo
