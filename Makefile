# A newcomer needs four words: make demo, make test, make lint, make bench.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := demo
SHARED := $${SSD_DIST_SHARED:-../shared}

.PHONY: setup demo test test-quick lint bench bench-prepare bench-collectives recipe chaos soak bccd lock clean
.DEFAULT_GOAL := setup

setup: $(READY)

# uv installs in seconds; where it cannot be had, pip does the same from the same lock. Bytecode is compiled once: where
# PYTHONDONTWRITEBYTECODE is set, each import of TensorFlow would compile it anew, for 5 s.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || true
	if $(BIN)/uv --version >/dev/null 2>&1; then \
	  $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock \
	  && $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .; \
	else \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock \
	  && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .; \
	fi
	touch $@

# Generated data -> shards -> two replicas -> metrics and pictures; nothing is downloaded.
demo: $(READY)
	rm -rf $(DEMO)
	$(BIN)/python -m toyset.sample --output=$(DEMO)/raw --train=1200
	for split in train val; do \
	  $(BIN)/python -m pipelines.prepare --input_format=coco --input=$(DEMO)/raw --split=$$split \
	    --output=$(DEMO)/data --config=configs/demo.yaml || exit; \
	done
	$(BIN)/python -m ssd_dist.cli.train --config=configs/demo.yaml --model_dir=$(DEMO)/run
	$(BIN)/python -m ssd_dist.cli.evaluate --model_dir=$(DEMO)/run --split=val \
	  --output=$(DEMO)/metrics.json --pictures=$(DEMO)/predictions.png

# Blood cells, the real data set of the README's figures.
bccd: $(READY)
	for split in train:trainval test:test; do \
	  $(BIN)/python -m pipelines.prepare --input_format=voc --input=$(SHARED)/data/bccd/BCCD \
	    --split=$${split%:*} --source_split=$${split#*:} --output=runs/bccd/data --config=configs/bccd.yaml || exit; \
	done
	$(BIN)/python -m ssd_dist.cli.train --config=configs/bccd.yaml --model_dir=runs/bccd/run
	$(BIN)/python -m ssd_dist.cli.evaluate --model_dir=runs/bccd/run --split=test \
	  --output=runs/bccd/metrics.json --pictures=runs/bccd/predictions.png

test: $(READY)
	$(BIN)/python -m pytest

test-quick: $(READY)
	$(BIN)/python -m pytest -m "not slow"

# Fifty faults against runs of two workers: what is killed, stopped, cut off, filled or damaged ends as if nothing had been.
chaos: $(READY)
	$(BIN)/python tests/chaos/harness.py --faults=50

# Half an hour of training: does any process grow?
soak: $(READY)
	$(BIN)/python tests/chaos/soak.py --minutes=30

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m benchmarks

bench-prepare: $(READY)
	$(BIN)/python -m benchmarks.prepare

# Bytes and time of a step's collectives for 1, 2 and 4 workers here; docs/clusters.md reads them.
bench-collectives: $(READY)
	$(BIN)/python -m benchmarks.collectives

# Every variant of the recipe, with three seeds, on real data: hours; it goes on where it was stopped.
recipe: $(READY)
	$(BIN)/python -m benchmarks.recipe

# Pins every version anew; needs uv.
lock:
	$(BIN)/uv pip compile --quiet --python-version 3.11 --extra pipelines --extra train --extra export --extra dev \
	  --no-header --no-annotate pyproject.toml --output-file requirements.lock

clean:
	rm -rf $(VENV) $(DEMO) runs *.egg-info
