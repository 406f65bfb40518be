# Every target sets up what it needs, in a virtual environment of its own.

PYTHON ?= python3
# Where torch comes from, if not from the default index. Without a GPU its CPU build is enough:
#   make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
TORCH ?= torch==2.13.0

SERVE := .venv-serve
DEV := .venv
LOCK := requirements-serve.txt
GPU := .venv-gpu
HELD_OUT := runs/heldout

# The parts of make gpu, the longest last; empty ones are left out:
#   make gpu GPU_PROVIDERS=cuda GPU_KERNELS= GPU_WAYS= GPU_CLAIMS=
GPU_PROVIDERS ?= cuda tensorrt
GPU_KERNELS ?= yes
GPU_WAYS ?= eager graph compile
GPU_CLAIMS ?= yes
WITH_TENSORRT := .[gpu,tensorrt]

# What make load sends, at how many requests per second; without RATES it finds out what the server keeps up with.
SCENARIO ?= mix
RATES ?=

# Debian packages that some tests need beside Python; without them those tests are skipped, and say so.
TOOLS := buildah debootstrap haproxy prometheus

# How long make fuzz runs each target, and its random seed.
SECONDS ?= 60
SEED ?= 1

# What make trials tries, on which artifacts; rollout needs haproxy.
MODELS ?=
TRIALS ?= deadline users storm drain $(if $(shell which haproxy),rollout) abandon chaos blocking overload soak

.DEFAULT_GOAL := help
.PHONY: help serve test test-fast check audit lock sbom image-test tools lint types format accuracy load trials fuzz \
	claims gpu check-weights shapes clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(SERVE)/installed ## Serve the shipped artifact on http://127.0.0.1:8000 (ARGS="--port 9000" passes flags)
	$(SERVE)/bin/vilt-serve $(ARGS)

test: $(DEV)/installed $(if $(CI),tools) ## Lint, types and every test: exports, parity at full size, real servers
	$(MAKE) lint types
	$(DEV)/bin/pytest

test-fast: $(DEV)/installed ## The tests that take no more than a few seconds each
	$(DEV)/bin/pytest -m "not slow"

check: test audit ## The same, and known vulnerabilities

audit: $(DEV)/audit ## Look up the locked serving versions among known vulnerabilities (needs the network)
	$(DEV)/bin/pip-audit --requirement $(LOCK) --disable-pip --progress-spinner off

lock: $(DEV)/audit ## Renew the locked versions of the serving install
	$(DEV)/bin/uv pip compile pyproject.toml --extra cpu --python-version 3.11 --universal --generate-hashes --upgrade \
		--quiet --custom-compile-command 'make lock' --output-file $(LOCK)

sbom: $(DEV)/audit $(SERVE)/installed ## Write what the serving install is made of, as CycloneDX: runs/sbom.json
	mkdir -p runs
	$(DEV)/bin/cyclonedx-py environment $(SERVE)/bin/python --pyproject pyproject.toml --output-file runs/sbom.json

image-test: $(DEV)/installed ## Build the image with docker, podman or buildah, and try it: root, on Linux; minutes
	$(DEV)/bin/pytest tests/deploy/test_image.py --need-image -rP

tools: ## Install what some tests need beside Python, where apt can: a builder of images, Prometheus, a proxy
	@-test "$$(id -u)" != 0 || which $(TOOLS) >/dev/null || timeout 300 sh -c \
		'apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qqy install --no-install-recommends $(TOOLS) >/dev/null'

lint: $(DEV)/installed ## ruff: style and formatting
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .

types: $(DEV)/installed ## mypy, strict, on server/, models/ and loadtest/
	$(DEV)/bin/mypy

format: $(DEV)/installed ## Format and fix what can be fixed
	$(DEV)/bin/ruff format .
	$(DEV)/bin/ruff check --fix .

accuracy: $(DEV)/installed ## Ask a server about 2,000 held-out scenes: questions, matching, ranking; some minutes
	$(DEV)/bin/python -m export.shapes.heldout --output $(HELD_OUT)
	$(DEV)/bin/vilt-bench accuracy --data $(HELD_OUT)/data.jsonl --output $(HELD_OUT)/accuracy.json

load: $(DEV)/installed ## Load a server and report on it (SCENARIO=vqa|itm|rank|mix, RATES="20 50" a second); minutes
	$(DEV)/bin/vilt-bench load --scenario $(SCENARIO) $(if $(RATES),--rate $(RATES)) --output runs/load $(ARGS)

trials: $(DEV)/installed ## What must hold under strain (MODELS="DIR ...", default shapes): overload, long ranks, storms, SIGTERM; 40 minutes; judge noisy machines at full size
	mkdir -p runs/trials
	failed=; for trial in $(TRIALS); do \
		echo "$$trial:"; \
		PYTHONPATH=tests $(DEV)/bin/python -m loadtest $$trial $(addprefix --model ,$(MODELS)) --output runs/trials/$$trial.json || failed=1; \
	done; test -z "$$failed"

fuzz: $(DEV)/installed ## Fuzz images, then request bodies, SECONDS=60 each, from SEED=1; what it finds is in runs/fuzz
	$(DEV)/bin/pip install --quiet --editable '.[fuzz]'
	for target in images bodies; do \
		PYTHONPATH=tests $(DEV)/bin/python tests/fuzz/$$target.py --seconds $(SECONDS) --seed $(SEED) || exit 1; \
	done

claims: $(DEV)/installed ## Time ViLT beside the 14 designs it is compared with, stage by stage; some 10 minutes
	$(DEV)/bin/vilt-bench claims --output runs/claims $(ARGS)

gpu: $(GPU)/installed ## On a machine with an NVIDIA GPU: its tests, parity, timings, torch beside it, HTTP, claims; see docs/gpu.md
	$(GPU)/bin/python -m export.random_checkpoint runs/gpu/checkpoint
	$(GPU)/bin/vilt-export runs/gpu/checkpoint --output runs/gpu/vqa --task vqa --precision fp16
	failed=; \
	$(if $(filter tensorrt,$(GPU_PROVIDERS)),$(GPU)/bin/pip install --quiet --editable '$(WITH_TENSORRT)' || failed=1;) \
	$(GPU)/bin/pytest -m "not slow" tests/server/gpu tests/gpu || failed=1; \
	$(if $(GPU_PROVIDERS),$(GPU)/bin/vilt-bench gpu --model runs/gpu/vqa --output runs/gpu/gpu.json \
		--providers $(GPU_PROVIDERS) $(if $(GPU_WAYS),--checkpoint runs/gpu/checkpoint --ways $(GPU_WAYS)) $(ARGS) || failed=1;) \
	$(if $(GPU_KERNELS),$(GPU)/bin/vilt-export runs/gpu/checkpoint --output runs/gpu/kernels --task vqa --kernels && \
		$(GPU)/bin/vilt-bench gpu --model runs/gpu/kernels --output runs/gpu/kernels.json --providers cuda $(ARGS) || failed=1;) \
	$(if $(GPU_CLAIMS),$(GPU)/bin/vilt-bench claims --provider cuda --output runs/gpu/claims || failed=1;) \
	test -z "$$failed"

check-weights: $(DEV)/installed ## Compare the public checkpoints with published logits (IMAGE=000000039769.jpg, of COCO)
	$(DEV)/bin/python -m export.check_weights $(ARGS) $(if $(IMAGE),'$(IMAGE)')

shapes: $(DEV)/installed ## Train and export the shipped artifact again: 94 minutes on 2 cores; each call stops after 75, and the next goes on
	$(DEV)/bin/python -m export.shapes.train --output runs/shapes
	mkdir -p export/shapes/checkpoint
	cp runs/shapes/checkpoint/* export/shapes/checkpoint/
	mv export/shapes/checkpoint/learning_curve.png models/artifacts/shapes/
	$(DEV)/bin/vilt-export export/shapes/checkpoint --output models/artifacts/shapes --name shapes \
		--description "Scenes of coloured shapes; it knows nothing else."

clean: ## Remove the virtual environments and what was made
	rm -rf $(SERVE) $(DEV) $(GPU) runs

$(SERVE)/installed: pyproject.toml setup.py models/_resize.c server/gpu/_operators.c
	$(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/pip install --quiet --upgrade pip
	$(SERVE)/bin/pip install --quiet --editable '.[cpu]'
	touch $@

$(GPU)/installed: pyproject.toml setup.py models/_resize.c server/gpu/_operators.c
	$(PYTHON) -m venv $(GPU)
	$(GPU)/bin/pip install --quiet --upgrade pip
	$(GPU)/bin/pip install --quiet $(TORCH)
	$(GPU)/bin/pip install --quiet --editable '.[export,loadtest,dev]'
	$(GPU)/bin/pip uninstall --quiet --yes onnxruntime
	$(GPU)/bin/pip install --quiet --editable '.[gpu]'
	touch $@

$(DEV)/installed: pyproject.toml setup.py models/_resize.c server/gpu/_operators.c
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/pip install --quiet --upgrade pip
	$(DEV)/bin/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(DEV)/bin/pip install --quiet --editable '.[cpu,export,loadtest,dev]'
	touch $@

$(DEV)/audit: $(DEV)/installed
	$(DEV)/bin/pip install --quiet --editable '.[audit]'
	touch $@
