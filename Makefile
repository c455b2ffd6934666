# Mainstay: `make run` serves both bundled models, `make test` tests everything; .ci/run is what CI runs.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
DATA ?= ../shared/data
CARGO ?= cargo

RUNTIME := target/onnxruntime/libonnxruntime.so
# Absolute, so that it holds whatever the working directory of a test is.
export MAINSTAY__RUNTIME__LIBRARY ?= $(CURDIR)/$(RUNTIME)

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

.PHONY: run
run: runtime ## Build release and serve both models on 127.0.0.1:8080 (admin: 127.0.0.1:8081)
	@$(CARGO) build --release --quiet
	@exec $${CARGO_TARGET_DIR:-target}/release/mainstay serve

.PHONY: tools
tools:
	@command -v $(CARGO) >/dev/null || { echo "make: cargo is missing: install Rust 1.95 or newer (rustup.rs)" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "make: a C linker is missing: install gcc (Debian: apt-get install gcc libc6-dev)" >&2; exit 1; }

.PHONY: runtime
runtime: tools ## Fetch the pinned ONNX Runtime library for this platform
	@scripts/fetch-onnxruntime.sh $(dir $(RUNTIME)) >/dev/null

.PHONY: test
test: runtime ## Format, clippy, all tests, the contract: CI runs it with MAINSTAY_SEEDS=2000, and fuzzes for a minute besides
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- --deny warnings
	$(CARGO) test --locked

.PHONY: fuzz
fuzz: runtime ## Fuzz what others write, each target for MINUTES=10; ARGS="request ledger" for some of them; FIXED=1 is the minute of CI
	scripts/fuzz.sh $(ARGS)

.PHONY: openapi
openapi: ## Write the contracts in openapi/ again from the code
	$(CARGO) run --quiet -- openapi > openapi/mainstay.yaml
	$(CARGO) run --quiet -- openapi --admin > openapi/admin.yaml

.PHONY: contract
contract: runtime ## Fuzz the live server by its own contract (Schemathesis)
	scripts/contract.sh

.PHONY: metrics
metrics: runtime ## Check the exposition of the live server with promtool
	scripts/metrics.sh

.PHONY: alerts
alerts: ## Check and test the alert rules with promtool, and the configuration of Alertmanager
	scripts/promtool.sh promtool check rules deploy/prometheus/*.rules.yml
	scripts/promtool.sh promtool check config deploy/prometheus/prometheus.yml
	scripts/promtool.sh promtool test rules deploy/prometheus/tests/*.yml
	scripts/promtool.sh amtool check-config deploy/alertmanager/alertmanager.yml

.PHONY: bench
bench: runtime ## Micro-benchmarks: encode, infer, decide, handler
	$(CARGO) bench --bench decide --bench handler

.PHONY: peers
peers: runtime ## Beside FastAPI and fastify with the same model: requests, processor time, batches, memory, cold start
	$(PYTHON) benches/peers/run.py $(ARGS)

.PHONY: slow
slow: runtime ## A dense network of some ms: in turns against one by one, overload, and a quick model beside it; ARGS="--pairs 7"
	$(CARGO) bench --bench slow -- measure $(ARGS)

.PHONY: growth
growth: runtime ## Cost against features, trees, rows, models and connections, each at most linear; ARGS="--only models"
	$(PYTHON) benches/growth.py $(ARGS)

.PHONY: load
load: runtime ## Open-loop load test with a verdict against the SLO; ARGS="--url … --rate …"
	$(PYTHON) benches/load.py $(ARGS)

.PHONY: show-score
show-score: ## The evidence: score all rows of DATA through a fresh clone
	$(PYTHON) scripts/show_score.py --data $(DATA)

.PHONY: show-record
show-record: runtime ## The evidence of the ledger: kills, tampering, full and slow disk, rate, cost, replay, erasure
	$(PYTHON) scripts/show_record.py $(ARGS)

.PHONY: show-swap
show-swap: runtime ## The evidence of slots and rollouts: swaps under load, faulty and good challengers, kills; ARGS="--only STEP"
	$(PYTHON) scripts/show_swap.py $(ARGS)

.PHONY: show-decide
show-decide: runtime ## The evidence of decisions: laws, knapsack, golden SHAP, the README's example, cost of reasons; ARGS="--only STEP"
	$(PYTHON) scripts/show_decide.py --data $(DATA) $(ARGS)

.PHONY: show-effect
show-effect: runtime ## The evidence of what came of it: 100 simulated months, drift, guardrails, the webhook, cost, alerts by a real Prometheus; ARGS="--only STEP"
	$(PYTHON) scripts/show_effect.py $(ARGS)

.PHONY: show-limit
show-limit: runtime ## The evidence at the limit: overload, faults, deadlines, cold start, soak (30 minutes), HTTP/2; ARGS="--only STEP --minutes N"
	$(PYTHON) scripts/show_limit.py $(ARGS)

.PHONY: show-tls
show-tls: runtime ## The evidence of TLS: a scan by sslyze, and certificates changed under load
	$(PYTHON) scripts/access_tls.py $(ARGS)

.PHONY: deny
deny: tools ## Check licences, sources and advisories of all crates (cargo-deny, built into target/tools)
	scripts/supply.sh deny

.PHONY: sbom
sbom: tools ## Write the bill of materials as CycloneDX into target/sbom
	scripts/supply.sh sbom

.PHONY: show-access
show-access: runtime ## The evidence of access: every route x credentials, rotation under load, rates, timing, TLS, crates; ARGS="--only STEP"
	$(PYTHON) scripts/show_access.py $(ARGS)

.PHONY: image
image: ## Build the container image and prove it by running it; ARGS=--local-base where no registry is reached
	scripts/image.sh $(ARGS)

VENV := .venv-train
$(VENV)/done: models/train/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

.PHONY: train
train: $(VENV)/done ## Train all bundles again from the CSVs in DATA
	PYTHONPATH=models $(VENV)/bin/python -B -m train --data $(DATA) --out models

.PHONY: faulty
faulty: $(VENV)/done ## Make the faulty bundles of the tests again
	PYTHONPATH=models $(VENV)/bin/python -B -m train.faulty --models models --out tests/data/bundles $(ARGS)

.PHONY: train-test
train-test: $(VENV)/done ## Test the trainer
	PYTHONPATH=models $(VENV)/bin/python -B -m unittest train.test_train
