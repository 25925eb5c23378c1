# `make help` lists what there is. Everything a target needs it installs itself; see deploy/setup.sh.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
VENV := .venv
PY := $(VENV)/bin/python
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Every worker of the tests and every command they start would compile all it imports: that is a third of `make check`.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup check test test-all explore sweep race bench-migration demo dev lint types proto-lint generate clean lab-free

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s $$'\t'

setup: ## install packages (as root on Debian), the virtual environment, and this project in it
	@deploy/setup.sh

lint: setup ## ruff
	ruff check .
	ruff format --check .

types: setup ## mypy --strict
	mypy

proto-lint: setup ## buf lint
	@deploy/proto_lint.sh

generate: setup ## write the API code from the .proto files
	$(PY) deploy/generate_api.py

FAST := --hypothesis-profile=fast -m "not lab and not etcd and not slow"
check: setup ## lint, types, contracts, unit, golden, rpc; no root; < 2 minutes on two cores
	@# tests/rpc waits for daemons most of the time, the others reckon: beside each other they fill two cores, and each worker reads its own half alone
	@deploy/beside.sh "$(MAKE) --no-print-directory lint types proto-lint" 'pytest -q -n 2 $(FAST) --ignore=tests/rpc' 'pytest -q -n 6 --dist worksteal $(FAST) tests/rpc'

test: check lab-free ## check + one pass of the lab: real etcd, libvirt, QEMU; as root, < 25 minutes
	status=0; pytest -q -m "(lab or etcd) and not slow" || status=$$?; deploy/lab_free.sh; exit $$status

test-all: test ## everything: after `make test` the slow tests too, and every law with all of its examples
	status=0; pytest -q -m "slow or (hypothesis and not lab and not etcd)" || status=$$?; deploy/lab_free.sh; exit $$status

explore: setup ## search every state of a migration's handoff for a broken promise, with each guard in place and with each taken out; ARGS=--story tells how, ALL=1 adds the large slices
	$(PY) -m tests.explore $(if $(ALL),--all) $(ARGS)

sweep: setup lab-free ## as root: kill, freeze and cut everybody at the riskiest steps of a migration, on real hosts; < 20 minutes, resumes; SWEEP=all: at every step
	status=0; PYTHONPATH=.:client/python:deploy/lab:deploy/demo $(PY) -m tests.sweep.run $(if $(filter all,$(SWEEP)),--all) $(ARGS) || status=$$?; deploy/lab_free.sh; exit $$status

simulate: setup ## whole clusters under random faults in virtual time; SEEDS=500 (the first 500), 17,4711 or 100-200; ARGS=--story tells what happened
	$(PY) -m tests.simulate $(or $(SEEDS),200) $(ARGS)

bench-migration: setup lab-free ## as root: live migration beside plain virsh migrate in one run, to build/bench/; 25 minutes; ARGS="--only idle": one case
	status=0; PYTHONPATH=.:client/python:deploy/lab:deploy/demo $(PY) -m tests.bench.migration.run $(ARGS) || status=$$?; deploy/lab_free.sh; exit $$status

lab-free: setup ## take down whatever lab is up on this machine
	@deploy/lab_free.sh

race: setup ## 1000 creates on 100 slots, three replicas on a real etcd, killed meanwhile and not; a minute; SEED=17: other kills
	SEED=$(or $(SEED),1) pytest -q tests/contention $(ARGS)

demo: setup ## a three-host cluster on this machine doing its main job; KEEP=1 leaves it running, DRIVER=sim simulates the hosts
	@deploy/demo.sh

dev: setup ## a simulated cluster in one process, for people who write clients
	hostler dev

clean: ## remove what was built (not the virtual environment)
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis
