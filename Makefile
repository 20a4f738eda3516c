# Everything runs in a virtual environment of the checkout, pinned by constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

FAULTS := tests/faults tests/training/test_resume.py tests/e2e/test_reuse.py tests/store/test_migrations.py \
	tests/cli/test_contract.py tests/cli/test_start.py tests/test_architecture.py

.PHONY: help setup demo test properties slow faults lint format pictures reference completions clean

help:
	@echo "make demo         learn the dog of docs/examples/photo.jpg and draw it (about 3 minutes on 2 cores)"
	@echo "make test         the whole test suite, in two processes"
	@echo "make properties   the property-based tests on examples that no run has seen; 20,000 random inputs at every entrance"
	@echo "make slow         the long quality and start-up runs"
	@echo "make faults       kills, races, full disks, damage and hostile inputs at full size, with their figures"
	@echo "make lint         format, ruff and mypy"
	@echo "make pictures     draw the pictures of README and docs again"
	@echo "make reference    write docs/cli.md again"
	@echo "make completions  write completions/ again"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: export OBJTUNE_PROJECT = demo
demo: $(STAMP)
	$(BIN)/objtune init
	$(BIN)/objtune train docs/examples/photo.jpg --class dog
	$(BIN)/objtune generate "a photo of <dog> on the beach" "a photo of <dog> in the snow" -n 2
	@echo
	@echo "Open demo/artifacts/adapter/dog/v001/preview.png: the photo, the same dog in four places it"
	@echo "was never in, and an ordinary dog as the base still draws it."

# Two processes of one thread each: torch's own threads would only take turns on the same processors. A module
# stays together, for its fixtures; the longest begin first (tests/conftest.py).
test: export OMP_NUM_THREADS = 1
test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=15

properties: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 -m "(hypothesis or fuzz) and not slow" --hypothesis-profile=default

slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow -s

faults: $(STAMP)
	$(BIN)/python -m pytest -q -m "not gpu" -k "not short" $(FAULTS)

lint: $(STAMP)
	$(BIN)/ruff format --check objtune_cli tests docs
	$(BIN)/ruff check objtune_cli tests docs
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format objtune_cli tests docs
	$(BIN)/ruff check --fix objtune_cli tests docs

pictures: $(STAMP)
	$(BIN)/python docs/pictures.py

reference: $(STAMP)
	$(BIN)/python docs/cli.py

completions: $(STAMP)
	for shell in bash zsh fish; do _OBJTUNE_COMPLETE=source_$$shell $(BIN)/objtune > completions/objtune.$$shell; done

clean:
	rm -rf $(VENV) demo build dist *.egg-info
