# Each target does everything on a fresh machine; `make help` lists them.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo train test test-newest platforms wheel lint browser help

demo: $(VENV)/installed ## install, and open the app on http://127.0.0.1:7860
	$(RUN) app.py

train: $(VENV)/installed-train ## install what `python -m training` needs
	@echo "Ready: . $(VENV)/bin/activate && python -m training --help"

# Two workers with one thread each; three take as long on two cores. The longest files come first (tests/conftest.py).
test: $(VENV)/installed-dev browser ## all tests; those of the page in a real Chromium
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What changes most often, and may break the backbones.
NEWEST := transformers peft accelerate tokenizers huggingface_hub safetensors
NEWEST_VENV := .venv-newest

test-newest: ## the library's tests with the newest transformers and peft, in an environment of their own
	$(PYTHON) -m venv $(NEWEST_VENV)
	grep -vE "^($$(echo $(NEWEST) | tr ' ' '|'))==" constraints.txt > $(NEWEST_VENV)/constraints.txt
	$(NEWEST_VENV)/bin/python -m pip install --quiet -U -c $(NEWEST_VENV)/constraints.txt $(NEWEST) \
	  -r requirements.txt -r requirements-train.txt -r requirements-gpu.txt -r requirements-dev.txt
	OMP_NUM_THREADS=1 $(NEWEST_VENV)/bin/python -m pytest -q tests/m3agiqa

# pip takes the markers of requirements from the machine that it runs on; uv from the one that is asked about.
platforms: $(VENV)/installed ## whether everything has wheels for Windows and macOS; nothing is installed
	$(PIP) uv
	for platform in windows macos; do MACOSX_DEPLOYMENT_TARGET=14.0 $(RUN) -m uv pip install --quiet --dry-run \
	  --python-platform $$platform --python-version 3.11 --only-binary :all: --target $(VENV)/elsewhere \
	  -c constraints.txt -r requirements.txt -r requirements-train.txt || exit 1; done

wheel: $(VENV)/installed-dev ## build dist/*.whl, and try it with all extras in an empty environment
	rm -rf dist m3agiqa.egg-info
	$(RUN) -m build --quiet --outdir dist .
	M3AGIQA_WHEEL=$$(echo dist/*.whl) $(RUN) -m pytest -q --timeout 3600 tests/test_wheel.py

lint: $(VENV)/installed-dev ## ruff, the import contracts and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-logo
	$(RUN) -m mypy

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone: an index may offer a CPU build of just this version.
$(VENV)/installed: requirements.txt constraints.txt | $(VENV)/bin/python
	$(PIP) "$$(grep '^torch==' requirements.txt)"
	$(PIP) -r requirements.txt
	touch $@

$(VENV)/installed-train: requirements-train.txt $(VENV)/installed
	$(PIP) -r requirements-train.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt requirements-train.txt requirements-gpu.txt requirements-postgres.txt \
  requirements-mcp.txt requirements-scale.txt $(VENV)/installed
	$(PIP) \
	  -r requirements-train.txt -r requirements-gpu.txt -r requirements-postgres.txt -r requirements-mcp.txt \
	  -r requirements-scale.txt -r requirements-dev.txt
	touch $@

# A browser for the UI tests: one that is there, else Debian's package, else Playwright's own.
browser: $(VENV)/installed-dev ## a Chromium for the tests, if there is none
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } || \
	$(RUN) -m playwright install chromium || \
	echo "No browser could be installed; the browser tests will be skipped."
