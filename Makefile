# What one does with this repository. `make` alone lists it.
.DEFAULT_GOAL := help
.PHONY: help run test lint bench image clean deps

CARGO ?= cargo
IMAGE ?= tollgate:latest

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Build the gateway and start the demo: no Redis, no files
	@scripts/install-deps.sh --build
	$(CARGO) run --locked --release -- demo

# Not --all-targets: that would also build and run the benchmarks.
test: ## Run every test against a redis-server that the tests start themselves
	@scripts/install-deps.sh --test
	$(CARGO) test --locked --lib --bins --tests
	$(CARGO) test --locked --doc

lint: ## Check the formatting, the code (clippy) and the documentation; any warning fails
	@scripts/install-deps.sh --build
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps

bench: ## Measure: hot functions (criterion), what checks cost Redis, then the gateway beside nginx and Varnish (benches/load)
	@scripts/install-deps.sh --bench
	$(CARGO) bench --locked
	$(CARGO) build --locked --profile dist
	benches/load/run.sh
	benches/load/cache-memory.sh

image: ## Build the container image (IMAGE=name:tag)
	docker build --tag $(IMAGE) .

deps: ## Install what is missing to build and test (Debian, Ubuntu)
	scripts/install-deps.sh --test

clean: ## Remove everything that was built
	$(CARGO) clean
