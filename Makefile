# Everything runs in a virtual environment of the checkout, pinned by constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

FAULTS := tests/faults tests/training/test_resume.py tests/e2e/test_reuse.py tests/store/test_migrations.py \
	tests/cli/test_contract.py tests/cli/test_start.py tests/test_architecture.py \
	tests/store/test_backend.py tests/store/test_object_storage.py tests/store/test_atomic_files.py tests/store/test_header_index.py

QUICK := tests/test_architecture.py tests/test_paths.py tests/config tests/numerics tests/store tests/images \
	tests/docs/test_pages.py tests/docs/test_schemas.py tests/docs/test_project_files.py

.PHONY: help setup demo check test commands properties slow faults lint format docs pictures reference completions clean

help:
	@echo "make demo         learn the dog of docs/examples/photo.jpg and draw it (about 3 minutes on 2 cores)"
	@echo "make check        format, lint, types and the quick tests, in less than a minute; before each commit"
	@echo "make test         the test suite, in two processes"
	@echo "make commands     whole commands, from a photo to pictures, as README and docs write them"
	@echo "make properties   the property-based tests on examples that no run has seen; 20,000 random inputs at every entrance"
	@echo "make slow         the long quality and start-up runs"
	@echo "make faults       kills, races, full disks, damage and hostile inputs at full size, with their figures"
	@echo "make lint         check format, ruff and mypy"
	@echo "make format       format the code and fix what ruff can"
	@echo "make docs         write the generated pages and build the site into site/; fails on a broken link"
	@echo "make pictures     draw the images of README and docs again"
	@echo "make reference    write the generated pages of docs/reference/"
	@echo "make completions  write completions/ again"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev,docs]'
	touch $(STAMP)

demo: export OBJTUNE_PROJECT = demo
demo: $(STAMP)
	$(BIN)/objtune init
	$(BIN)/objtune train docs/examples/photo.jpg --class dog
	$(BIN)/objtune generate "a photo of <dog> on the beach" "a photo of <dog> in the snow" -n 2
	@echo
	@echo "Open demo/artifacts/adapter/dog/v001/preview.png: the photo, the same dog in four places it"
	@echo "was never in, and an ordinary dog as the base still draws it."

# What to run before a commit: everything that is quick.
check: export OMP_NUM_THREADS = 1
check: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --ignore tests/store/test_atomic_files.py $(QUICK)

# Two processes of one thread each: torch's own threads would only take turns on the same processors. A module
# stays together, for its fixtures; the longest begin first (tests/conftest.py).
test: export OMP_NUM_THREADS = 1
test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=15

# What a user types, from beginning to end, much of it in processes of its own; CI runs it after `make test`.
commands: export OMP_NUM_THREADS = 1
commands: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "commands and not slow and not gpu and not faults and not fuzz"

properties: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 -m "(hypothesis or fuzz) and not slow" --hypothesis-profile=default

slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow -s

faults: $(STAMP)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[ray]'
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
	$(BIN)/python docs/build_reference.py

docs: export NO_MKDOCS_2_WARNING = 1
docs: reference
	$(BIN)/mkdocs build --strict --quiet
	@echo "Open site/index.html"

completions: $(STAMP)
	for shell in bash zsh fish; do _OBJTUNE_COMPLETE=source_$$shell $(BIN)/objtune > completions/objtune.$$shell; done

clean:
	rm -rf $(VENV) demo site build dist *.egg-info
