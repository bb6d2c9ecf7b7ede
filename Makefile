# Thin on purpose: each target is a line or two; what they call can be called by hand.
VENV := .venv
BIN := $(VENV)/bin
# Airflow's own environment: its pins and ours do not meet.
AIRFLOW := .venv-airflow
UV := uv==0.13.9
# uv does not read pip's configuration: hand it the folder of local wheels, where pip has one.
export UV_FIND_LINKS ?= $(shell python3 -m pip config get global.find-links 2>/dev/null || python3 -m pip config get :env:.find-links 2>/dev/null)
# TORCH=cpu or TORCH=cu130 picks the build of torch; unset, the package index's default is taken (CUDA on Linux).
TORCH_BACKEND := $(if $(TORCH),--torch-backend $(TORCH))

.PHONY: setup demo demo-drift up down status logs test e2e lint format docs lock images clean

setup: $(VENV)/.installed $(AIRFLOW)/.installed

$(VENV)/.installed: requirements/training-dev.txt pyproject.toml
	@command -v python3.11 >/dev/null && python3.11 -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(UV)
	$(BIN)/uv pip install -q -p $(VENV) $(TORCH_BACKEND) -r requirements/training-dev.txt
	$(BIN)/uv pip install -q -p $(VENV) --no-deps --no-build-isolation -e .
	@touch $@
	@echo "ready: make demo, or $(BIN)/ssl-core run projects/digits.yaml"

# Upgraded in place: a platform that runs from it goes on. Compiled now: at the first start four processes would each
# compile the same files.
$(AIRFLOW)/.installed: requirements/airflow-dev.txt pyproject.toml $(VENV)/.installed
	@test -x $(AIRFLOW)/bin/python || $(BIN)/uv venv -q --clear -p $(BIN)/python $(AIRFLOW)
	$(BIN)/uv pip install -q -p $(AIRFLOW) --compile-bytecode -r requirements/airflow-dev.txt
	$(BIN)/uv pip install -q -p $(AIRFLOW) --no-deps --no-build-isolation -e .
	@touch $@

# The platform: Airflow and MLflow on this machine, on loopback. The same as `ssl-core up`, `down`, `status` and `logs`.
demo: setup
	@$(BIN)/ssl-core demo

# After it: new data, drift, and a champion that learns on.
demo-drift: setup
	@$(BIN)/ssl-core demo-drift

up: setup
	@$(BIN)/ssl-core up

down:
	@$(BIN)/ssl-core down

status:
	@$(BIN)/ssl-core status

logs:
	@$(BIN)/ssl-core logs -f

test: setup
	$(BIN)/python -m pytest -n 2 -m "not e2e"
	$(AIRFLOW)/bin/python -m pytest -n 2 -m "not e2e"

e2e: setup
	$(BIN)/python -m pytest -m e2e

lint: setup
	$(BIN)/python docs/generate.py --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/*.Dockerfile
	PYTHONPATH=dags $(BIN)/lint-imports
	$(BIN)/ssl-core lint projects/*.yaml

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python docs/generate.py

# Lock files carry no index address, no local build tag and none of the CUDA packages that one build of torch pins for
# itself, so that any index and any build of torch can serve them.
NEUTRAL := sed -i -E 's/\+cpu$$//; /^(nvidia-|cuda-|triton==)/d'
COMPILE := $(BIN)/uv pip compile -q --no-emit-index-url --no-emit-find-links --no-annotate --no-header
# The images hold less than the training environment, and nothing in another version.
PINNED := -c requirements/training-dev.txt

lock: setup
	$(COMPILE) pyproject.toml --extra train -o requirements/training.txt && $(NEUTRAL) requirements/training.txt
	$(COMPILE) pyproject.toml --extra train --extra dev -c requirements/training.txt -o requirements/training-dev.txt && $(NEUTRAL) requirements/training-dev.txt
	$(COMPILE) pyproject.toml --extra job $(PINNED) -o requirements/job.txt && $(NEUTRAL) requirements/job.txt
	$(COMPILE) pyproject.toml --extra airflow -o requirements/airflow.txt
	$(COMPILE) pyproject.toml --extra airflow --extra airflow-dev -c requirements/airflow.txt -o requirements/airflow-dev.txt
	$(COMPILE) $(PINNED) --group mlflow -o requirements/mlflow.txt
	$(COMPILE) $(PINNED) --group build -o requirements/build.txt

# The images of jobs, Airflow and MLflow: ssl-core-training, ssl-core-airflow and ssl-core-mlflow, with the version as tag.
# TORCH as above; BASE_IMAGE another Debian with Python 3.11; BUILD_FLAGS whatever else `docker build` takes.
DOCKER ?= docker
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
TAG ?= $(VERSION)
REVISION = $(shell git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null || echo unknown)

images: image-training image-airflow image-mlflow

image-%: docker/%.Dockerfile
	$(DOCKER) build -f $< -t ssl-core-$*:$(TAG) --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) \
		$(foreach name,BASE_IMAGE BUILD_IMAGE TORCH,$(if $($(name)),--build-arg $(name)=$($(name)))) $(BUILD_FLAGS) .

clean:
	rm -rf $(VENV) $(AIRFLOW) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
