# Everything starts from here; `make help` lists it. Only Python >= 3.11 is expected (on Debian even that is installed).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
BIN := .venv/bin
PYTHON := PYTHONPATH=operator:dtma:hack $(BIN)/python
PATHS := operator dtma hack tests examples
STAMP := .venv/.locked
# Test processes: one more than the cores of a small machine, since much of the time they wait for something.
PROCESSES := 3
# Where the environment forbids it, each test process compiles its files and rewrites their assertions anew: 17 s each.
unexport PYTHONDONTWRITEBYTECODE
SIDE_BY_SIDE = $(PYTHON) -m localstack.with_engine $(BIN)/pytest -n $(PROCESSES) --no-loadscope-reorder

.PHONY: help setup prepare demo test test-unit test-faults test-install bench test-crds verify fmt lint types crds lock images bundle manifests kind-up clean purge

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

setup: $(STAMP) ## the virtual environment .venv, exactly as requirements/dev.lock says

$(STAMP): requirements/dev.lock
	hack/setup.sh .venv requirements/dev.lock

prepare: $(STAMP) ## downloads or builds what demo and test need (Kubernetes, Docker, images); cached
	$(PYTHON) -m localstack.prepare

demo: $(STAMP) ## a whole system on this machine until Ctrl-C; ONCE=1: one tool call, then the exit code says if it worked
	$(PYTHON) -m localstack.demo $(if $(ONCE),--once)

test: prepare ## all tests but the long ones below; ARGS="-k name -x" go to pytest
	$(SIDE_BY_SIDE) -m "not crds and not faults and not bench and not install" $(ARGS)

test-unit: $(STAMP) ## the tests that need nothing but Python
	$(BIN)/pytest -m "not crds and not faults and not bench and not install and not integration and not e2e" $(ARGS)

test-faults: prepare ## bad input, crashes and outages on real parts: some 20 minutes on 2 cores
	$(SIDE_BY_SIDE) -m faults $(ARGS)

test-install: prepare ## builds images, manifests and host bundle, and tries them: some minutes
	$(BIN)/pytest -m install $(ARGS)

bench: prepare ## measures against the bounds of the design, on an idle machine: some 25 minutes; writes docs/benchmarks.md
	$(BIN)/pytest -m bench tests/bench $(ARGS)

test-crds: $(STAMP) ## CRDs, CEL rules and examples against the CRD server of Kubernetes 1.36 (built once, cached)
	hack/build-crd-server.sh >/dev/null
	$(BIN)/pytest -m crds $(ARGS)

verify: lint types ## what CI checks besides the tests: format, lint, types, layers, generated CRDs
	PYTHONPATH=operator:dtma $(BIN)/lint-imports --no-cache --no-logo
	fresh=$$(mktemp -d) && $(PYTHON) -m toolbox_operator.api.crd $$fresh >/dev/null && diff -r $$fresh crds && rm -r $$fresh
	$(PYTHON) -m toolbox_operator.domain.policy | diff - docs/failures.md
	$(PYTHON) -m toolbox_operator.domain.cures | diff - docs/conditions.md

fmt: $(STAMP) ## formats the code
	$(BIN)/ruff check --fix $(PATHS)
	$(BIN)/ruff format $(PATHS)

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check $(PATHS)
	$(BIN)/ruff format --check $(PATHS)

types: $(STAMP) ## basedpyright, strict
	$(BIN)/basedpyright

crds: $(STAMP) ## writes crds/ from the pydantic models, and docs/failures.md and docs/conditions.md from the tables
	$(PYTHON) -m toolbox_operator.api.crd crds
	$(PYTHON) -m toolbox_operator.domain.policy > docs/failures.md
	$(PYTHON) -m toolbox_operator.domain.cures > docs/conditions.md

lock: $(STAMP) ## raises requirements/dev.lock to the newest allowed versions
	$(BIN)/pip-compile --upgrade --allow-unsafe --extra=dev --extra=dtma --extra=operator --generate-hashes --no-emit-find-links --no-emit-index-url --no-emit-trusted-host --output-file=requirements/dev.lock --strip-extras pyproject.toml

images: $(STAMP) ## container images of operator and DTMA; ARGS="--prefix my-registry/magic-toolbox --tag 0.1.0"
	$(PYTHON) -m delivery.images $(ARGS)

bundle: $(STAMP) ## dist/magic-toolbox-host-*.tar.gz: what a Docker host with systemd is installed from
	$(PYTHON) -m delivery.bundle $(ARGS)

manifests: $(STAMP) ## prints manifests/ as kustomize builds it; ARGS="manifests/overlays/dev", --before-1.25 for old test servers
	@$(PYTHON) -m delivery.manifests $(ARGS)

kind-up: images ## a kind cluster with the operator and a PostgreSQL, for those who have kind
	hack/kind-up.sh

clean: ## removes .venv and caches of tools; what was downloaded and built stays (make purge)
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist build

purge: ## removes the downloads, builds and base images that demo and test keep to start fast
	rm -rf "$${MAGIC_TOOLBOX_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/magic-toolbox}" /var/cache/magic-toolbox
	docker images --quiet --filter 'reference=magic-toolbox/*' --filter 'reference=localhost/magic-toolbox/*' | sort -u | xargs --no-run-if-empty docker rmi --force
