PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --disable-pip-version-check

.PHONY: help demo test docs coverage stress audit clean

help:
	@echo 'make demo   distil a small PSPNet on generated street scenes, 6 to 10 minutes on 2 idle CPU cores'
	@echo 'make test   lint and tests'
	@echo 'make docs   the guides as web pages, in docs/_build; half a minute'
	@echo 'make coverage the tests, with the share of the lines that they run'
	@echo 'make stress what takes longer: kills, long runs, many processes; half an hour'
	@echo 'make audit  known vulnerabilities of the pinned packages'
	@echo 'make clean  remove the environment, the generated scenes and the results of the demo'

# The stamp is younger than what it was made from only when the installation went through. opencv-python needs
# libraries of a desktop. Without them its headless build takes its place; the last line fails if that is no help.
$(VENV)/.installed: setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	"error: Python 3.10 or newer is needed. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	@echo '== Installing into $(VENV)'
	$(PIP) -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c 'import cv2' 2>/dev/null || { \
	echo '== cv2 lacks a system library here: opencv-python-headless takes the place of opencv-python' && \
	$(BIN)/pip uninstall -y opencv-python && \
	$(PIP) -c constraints.txt --no-deps --force-reinstall opencv-python-headless && \
	$(BIN)/python -c 'import cv2'; }
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/python tools/demo.py

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

docs: $(VENV)/.installed
	$(BIN)/sphinx-build --quiet --fail-on-warning -c docs . docs/_build
	@echo docs/_build/index.html

coverage: $(VENV)/.installed
	$(BIN)/pytest --cov --cov-report=term --numprocesses auto --dist loadfile --no-loadscope-reorder

stress: $(VENV)/.installed
	HYPOTHESIS_PROFILE=stress $(BIN)/pytest -v tests/stress tests/losses/test_properties.py

audit: $(VENV)/.installed
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --disable-pip-version-check -q pip-audit
	$(BIN)/pip freeze --exclude-editable | $(VENV)/audit/bin/pip-audit --no-deps --disable-pip -r /dev/stdin

clean:
	rm -rf $(VENV) data/street_scenes work_dirs/demo docs/_build
