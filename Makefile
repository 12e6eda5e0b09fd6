# The most important targets: make demo, make test, make lint, make bench.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Marks a complete installation. The name contains a checksum of the requirements, because their modification times also
# change without their content, and installing again breaks the processes that use $(VENV).
READY := $(VENV)/.ready-$(shell cat requirements.lock pyproject.toml | cksum | tr ' ' -)
DEMO := demo
SHARED := $${SSD_DIST_SHARED:-../shared}

.PHONY: setup demo test test-quick test-long lint bench bench-prepare bench-collectives recipe battery chaos soak fuzz deploy-clients containers bccd docs dist lock clean
.DEFAULT_GOAL := setup

setup: $(READY)

# uv installs in seconds; where it is not available, pip installs from the same lock. Bytecode is compiled here: with
# PYTHONDONTWRITEBYTECODE set, each import of TensorFlow would otherwise compile it again, which takes 5 s.
$(READY):
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || true
	if $(BIN)/uv --version >/dev/null 2>&1; then \
	  $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock \
	  && $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .; \
	else \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock \
	  && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .; \
	fi
	touch $@

# Generates a dataset and runs ssd-fit on it, on two replicas of the CPU. Downloads nothing.
demo: $(READY)
	rm -rf $(DEMO)
	$(BIN)/python -m toyset.sample --output=$(DEMO)/raw --train=1200
	CUDA_VISIBLE_DEVICES=-1 $(BIN)/python -m ssd_dist.cli.fit --input=$(DEMO)/raw --output=$(DEMO)/run \
	  --config=configs/demo.yaml

# Reproduces the README's figures on BCCD, a dataset of blood cells.
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
	$(BIN)/python -m pytest -m "not slow and not long"

# The tests that take minutes and that `make test` replaces by shorter ones.
test-long: $(READY)
	$(BIN)/python -m pytest -m long

# Injects 50 faults into runs of two workers. Each run must end with the same bits as an undisturbed one.
chaos: $(READY)
	$(BIN)/python tests/chaos/harness.py --faults=50

# Trains for half an hour and checks that no process leaks memory or open files.
soak: $(READY)
	$(BIN)/python tests/chaos/soak.py --minutes=30

# Reads 2,000 damaged datasets in every format. No image may be lost, and every error must have a message.
fuzz: $(READY)
	SSD_DIST_FUZZ=2000 $(BIN)/python -m pytest -s tests/pipelines/test_fuzz_formats.py

# Runs the client scripts of docs/deploy/, including MediaPipe, which does not install beside the locked packages, and
# LiteRT.js, if npm and Chromium are installed.
deploy-clients: $(READY)
	test -x .venv-mediapipe/bin/python || $(PYTHON) -m venv .venv-mediapipe
	.venv-mediapipe/bin/python -m pip install --quiet --disable-pip-version-check mediapipe==1.2.3
	! command -v npm || npm install --silent --no-audit --no-fund --prefix .browser @litertjs/core@2.5.3
	$(BIN)/python -m pytest tests/export/test_deploy_pages.py

# Builds both containers with buildah and trains for two steps in them. Needs root on Debian, and 20 GB of disk.
containers:
	tests/launch/build_containers.sh $${TMPDIR:-/tmp}/ssd_containers

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m benchmarks

bench-prepare: $(READY)
	$(BIN)/python -m benchmarks.prepare

# Measures bytes and time of a step's collectives for 1, 2 and 4 workers on this machine.
bench-collectives: $(READY)
	$(BIN)/python -m benchmarks.collectives

# Trains every variant of the recipe on real data with three seeds. Takes hours; resumes after an interruption.
recipe: $(READY)
	$(BIN)/python -m benchmarks.recipe

# Trains what ssd-fit chooses, and the config that it is compared with, on six real datasets. Takes hours; resumes.
# Without --protocol=test, it never reads a test split.
MINUTES := 30
battery: $(READY)
	$(BIN)/python -m benchmarks.battery --minutes=$(MINUTES)

# Builds the documentation and the API reference in site/. A broken link or reference is an error.
docs: $(READY)
	$(BIN)/mkdocs build --strict

# Builds the wheel and the source distribution in dist/, and checks their metadata. Needs uv, which downloads twine.
dist: $(READY)
	rm -rf dist
	$(BIN)/uv build --out-dir dist
	$(BIN)/uv tool run twine check --strict dist/*

# Adds new requirements of pyproject.toml to the locks and keeps all other pins. Needs uv. The locks contain the hashes of
# all files of each version, and the locks of the containers have the versions of requirements.lock.
# To update one package: make lock UPGRADE="--upgrade-package numpy"
LOCK = $(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-header --no-annotate $(UPGRADE)
lock:
	$(LOCK) --extra pipelines --extra train --extra export --extra openvino --extra dev pyproject.toml \
	  --output-file requirements.lock
	$(LOCK) --constraint requirements.lock --extra train --extra gpu pyproject.toml \
	  --output-file launch/train/requirements.lock
	$(LOCK) --constraint requirements.lock --extra pipelines pyproject.toml --output-file launch/prepare/requirements.lock

clean:
	rm -rf $(VENV) $(DEMO) runs site dist *.egg-info
