# The front door. `make help` lists everything; bodies call the project's own commands.
SHELL := /bin/bash
.DEFAULT_GOAL := help

export XDG_CACHE_HOME ?= $(HOME)/.cache
CACHE := $(XDG_CACHE_HOME)/llmservice
UV_VERSION := 0.13.9
UV := $(CACHE)/uv-$(UV_VERSION)/bin/uv
RUN := $(UV) run --frozen --no-sync

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-16s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- set-up -------------------------------------------------------------------------------------

$(UV):
	@echo "installing uv $(UV_VERSION) into $(CACHE)"
	@python3 -m venv $(CACHE)/uv-$(UV_VERSION)
	@$(CACHE)/uv-$(UV_VERSION)/bin/pip install --quiet uv==$(UV_VERSION)

.venv/.synced: $(UV) pyproject.toml uv.lock
	@$(UV) sync --frozen --quiet
	@touch $@

.PHONY: setup
setup: .venv/.synced ## Python environment from the lock (nothing else is needed for `make check`)

# --- the inner loop -----------------------------------------------------------------------------

.PHONY: check
check: lint unit ## Format, lint, types, layers and pure tests; needs no cluster

.PHONY: lint
lint: setup ## Format, lint, types, layers
	@$(RUN) ruff format --check --quiet . || { echo "run make fmt"; exit 1; }
	@$(RUN) ruff check --quiet .
	@$(RUN) mypy
	@$(RUN) lint-imports --no-cache > /tmp/lint-imports.$$$$ || { cat /tmp/lint-imports.$$$$; exit 1; }; rm -f /tmp/lint-imports.$$$$

.PHONY: fmt
fmt: setup ## Format and mend what the linter can
	@$(RUN) ruff format --quiet . && $(RUN) ruff check --quiet --fix .

.PHONY: unit
unit: setup ## Pure tests
	@$(RUN) pytest -q -n auto -m "not contract and not e2e and not integrations" tests

.PHONY: generate
generate: setup ## Rewrite what is generated: CRD, chart copies, blocks of the documentation
	@$(RUN) llmservice crds > crds/llmservices.llmservice.dev.yaml
	@$(RUN) python -m tests.chart.generate
	@$(RUN) python -m tests.docs.generate

.PHONY: flags
flags: setup ## Rewrite the flag table from vLLM wheels: make flags WHEELS=folder
	@$(RUN) python -m tests.flags.generate "$(WHEELS)" operator/llmservice/data/vllm-flags.json

.PHONY: golden
golden: setup ## Rewrite the golden manifests; review them as a diff
	@$(RUN) pytest -q tests/golden --update-golden

# --- the real thing -----------------------------------------------------------------------------

.PHONY: test
test: check contract e2e ## Everything: pure tests, a real API server, a real cluster with real vLLM

.PHONY: binaries
binaries: ## Kubernetes and friends, built once from their Go modules into the cache
	@python3 -m e2e.cluster build

.PHONY: contract
contract: setup binaries ## Tests against a real kube-apiserver with its controllers
	@$(RUN) pytest -q -m contract tests

.PHONY: test-integrations
test-integrations: setup binaries ## Tests against other projects' programs (Envoy Gateway, KEDA), built once
	@$(RUN) python -m e2e.cluster.envoy_gateway
	@$(RUN) python -m e2e.cluster.keda
	@$(RUN) pytest -q -m integrations tests

.PHONY: e2e
e2e: setup ## Tests on a real cluster with the chart installed and real vLLM pods
	@$(RUN) pytest -q -m e2e tests e2e

.PHONY: demo
demo: setup ## A real cluster, the operator from this tree, a completion, a rollout
	@$(RUN) python -m e2e.demo

.PHONY: demo-down
demo-down: ## Stop the demo's cluster; the cache stays
	@python3 -m e2e.demo down

.PHONY: bench-operator
bench-operator: setup binaries ## The figures of docs/performance.md
	@$(RUN) python -m tests.bench.operator

.PHONY: bench-planner
bench-planner: setup ## The planner against starts of real engines: make bench-planner [DATA=file.csv]
	@$(RUN) python -m tests.bench.planner $(DATA)

.PHONY: bench-judge
bench-judge: setup ## How often the judge of canaries errs: the table of docs/rollouts.md
	@$(RUN) python -m tests.bench.judge

.PHONY: bench-autoscale
bench-autoscale: setup ## Autoscaling policies on generated traces: the table of docs/autoscaling.md
	@$(RUN) python -m tests.bench.autoscale

.PHONY: bench-router
bench-router: setup ## What a router costs, with a real Envoy: the figures of docs/performance.md
	@$(RUN) python -m tests.bench.router

.PHONY: bench-queue
bench-queue: setup ## The router's queue, with a real Envoy: what waits where, and what that costs
	@$(RUN) python -m tests.bench.queue

.PHONY: bench-metrics
bench-metrics: setup binaries ## The metrics server at a thousand pods, and how soon a queue scales
	@$(RUN) python -m tests.bench.metrics_api
	@$(RUN) python -m tests.bench.reaction

.PHONY: clean-cache
clean-cache: demo-down ## Remove binaries, images and environments from the user cache
	@rm -rf "$(CACHE)"
