# Every target sets up .venv first where it is missing or older than the lock.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
PEERS  := $(VENV)-peers
DEVICE ?= auto
NAME   ?= this
METHODS ?= glob(*)
WHEELS_PYTHON ?= 3.12
SITE   := $(VENV)-site
VLLM   := $(VENV)-vllm
LAUNCHERS := $(VENV)-launchers

# An environment that another checkout set up is used as it is, with the code of this one: nothing is installed into it.
others = $(filter-out $(CURDIR),$(shell sed -n 's|.*"file://\([^"]*\)".*|\1|p' \
	$(1)/lib/python*/site-packages/bakeoff-*.dist-info/direct_url.json 2>/dev/null))
ready  = $(if $(call others,$(1)),,$(1)/.ready)
READY       := $(call ready,$(VENV))
READY_PEERS := $(call ready,$(PEERS))
READY_VLLM  := $(call ready,$(VLLM))
READY_LAUNCHERS := $(call ready,$(LAUNCHERS))
ifneq ($(strip $(foreach each,$(VENV) $(PEERS) $(VLLM) $(LAUNCHERS),$(call others,$(each)))),)
export PYTHONPATH := $(CURDIR)/src
endif

.PHONY: bakeoff league mismatch arena arena-all arena-tuning baseline-tuning reuse-tuning rlhf claims tuning report ui ui-test test slurm-test ray-test server-test fuzz chaos processes lint check memory critic calibrate seconds bench bench-peers bench-report published gpu wheels vllm vllm-test smollm2 smollm2-study docs site lock clean

bakeoff: $(READY)  ## the headline study, its table and its report
	$(BIN)/bakeoff sweeps=methods
	$(BIN)/bakeoff-report methods

league: $(READY)  ## every method at equal samples and equal tuning: half an hour or so, and the table of docs/results.md
	$(BIN)/bakeoff sweeps=all_methods
	$(BIN)/bakeoff-report all_methods

arena: $(READY)  ## methods x regimes x five seeds: an hour or so on two cores, resumes where it stopped; its page says which to choose
	$(BIN)/bakeoff sweeps=arena hydra.sweep.dir=outputs/arena
	$(BIN)/bakeoff sweeps=arena hydra.sweep.dir=outputs/arena algorithm=dapo,maxrl regime=sparse,mixed,explore
	$(BIN)/bakeoff sweeps=arena hydra.sweep.dir=outputs/arena algorithm=entropy_bonus,clip_higher regime=explore
	$(BIN)/bakeoff sweeps=arena hydra.sweep.dir=outputs/arena algorithm=dr_grpo,grpo,maxrl regime=sparse_groups
	$(BIN)/bakeoff sweeps=arena hydra.sweep.dir=outputs/arena algorithm=importance_sampling,cispo,dppo regime=reuse,costly
	$(BIN)/bakeoff-report arena

arena-all: arena  ## every method x regimes x seeds: a night
	$(BIN)/bakeoff sweeps=arena hydra.sweep.dir=outputs/arena "algorithm=glob(*)"
	$(BIN)/bakeoff-report arena

arena-tuning: $(READY)  ## the learning rate of each method of METHODS on the plain regime, and its file in conf/tuned/arena_tiny
	$(BIN)/bakeoff-tune "algorithm=$(METHODS)" regime=plain protocol=arena_tiny evaluation.final=1024 --name arena_tiny --base sort_tiny --seeds 100,101,102 --rates 1e-4:3e-3:8

baseline-tuning: $(READY)  ## the learning rate of the study baselines' arm with a critic, which is no method
	$(BIN)/bakeoff-tune algorithm=reinforce algorithm/critic=separate algorithm/advantage=gae algorithm.advantage.lam=1.0 \
	  protocol=arena_tiny evaluation.final=1024 --name arena_tiny --base sort_tiny --variant baseline_critic --seeds 100,101,102 --rates 1e-4:3e-3:8

reuse-tuning: $(READY)  ## the learning rate of each arm of the study sample_reuse, which are no methods
	for objective in clip ratio; do for epochs in 1 2 4 8; do \
	  $(BIN)/bakeoff-tune algorithm=importance_sampling algorithm/objective=$$objective algorithm.optimizer.epochs=$$epochs \
	    algorithm.optimizer.minibatches=1 micro_tokens=1024 protocol=arena_tiny evaluation.final=1024 --name arena_tiny --base sort_tiny \
	    --variant $${objective}_$$epochs --seeds 100,101,102 --rates 1e-4:3e-3:8 || exit 1; done; done

mismatch: $(READY)  ## corrections where the sampler is not the policy: forty minutes, resumes where it stopped
	$(BIN)/bakeoff sweeps=mismatch hydra.sweep.dir=outputs/mismatch
	$(BIN)/bakeoff sweeps=mismatch hydra.sweep.dir=outputs/mismatch regime=plain algorithm/correction=none
	$(BIN)/bakeoff-report mismatch

rlhf: $(READY)  ## the four models of RLHF: the learned reward against the true one
	$(BIN)/bakeoff sweeps=rlhf
	$(BIN)/bakeoff-report rlhf

tuning: $(READY)  ## the rates of the three methods of the headline, equally many trials each
	$(BIN)/bakeoff sweeps=tuning algorithm=ppo
	$(BIN)/bakeoff sweeps=tuning algorithm=ppo_kl
	$(BIN)/bakeoff sweeps=tuning algorithm=grpo
	$(BIN)/bakeoff-report tuning --sweeps 3

claims: $(READY)  ## what every claim compares, and the page of claims: two hours or so, resumes where it stopped
	$(BIN)/python -c 'from bakeoff.report.page import all_claims; print(*dict.fromkeys( \
	  f"sweeps={study} hydra.sweep.dir=outputs/{study} {claim.arms}" for study, claim in all_claims()), sep="\n")' | \
	  while read -r sweep; do $(BIN)/bakeoff $$sweep </dev/null || exit 1; done
	$(BIN)/bakeoff-report claims

report: $(READY)  ## the headline report again, from the store alone
	$(BIN)/bakeoff-report methods

ui: $(READY)  ## the MLflow UI on the store of this folder, and the addresses of its runs and curves
	$(BIN)/python -m bakeoff.ui $${PORT:-5000}
	$(BIN)/mlflow ui --host 127.0.0.1 --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db} --port $${PORT:-5000}

test: $(READY)  ## all tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup

ui-test: $(READY)  ## the MLflow UI in headless Chromium
	$(BIN)/python -m pytest -m ui tests/ui

slurm-test: $(READY_LAUNCHERS)  ## as root on Debian: six jobs in a Slurm of two nodes on this machine, preempted, with a node killed: ten minutes or so
	command -v slurmctld > /dev/null || (apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends slurm-wlm)
	$(LAUNCHERS)/bin/python -m pytest -n 0 -m cluster tests/cluster/test_slurm.py

ray-test: $(READY_LAUNCHERS)  ## six jobs on a Ray cluster in a network of its own, with a worker and a node killed: five minutes or so
	unshare --net --map-root-user sh -c 'ip link set lo up && exec $(LAUNCHERS)/bin/python -m pytest -n 0 -m cluster tests/cluster/test_ray.py'

server-test: $(READY_LAUNCHERS)  ## eight writers on `mlflow server` with PostgreSQL behind it: two minutes or so
	$(LAUNCHERS)/bin/python -m pytest -n 0 -m cluster tests/cluster/test_server.py

fuzz: $(READY)  ## 10 000 mutated configurations: each is refused in one sentence or sound; 1000 small ones take an update
	$(BIN)/python -m pytest -n 2 --hypothesis-profile=fuzz tests/test_ranges.py

chaos: $(READY)  ## kills, damaged files, outages, full disks, fuzz and hostile completions: what survived, in twenty minutes or so
	$(BIN)/python -m tests.chaos $(CHAOS)

processes: $(READY)  ## every method by two processes against one: the largest relative difference; METHODS=grpo tries one
	$(BIN)/python -m tests.together $(if $(filter glob%,$(METHODS)),,$(METHODS))

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

memory: $(READY)  ## predicted against measured memory, every method on two models
	$(BIN)/python -m benchmarks.memory --device $(DEVICE)

calibrate: $(READY)  ## the rates of this machine's device, for `bakeoff-predict hardware=$(NAME)`
	$(BIN)/python -m benchmarks.calibrate --device $(DEVICE) --name $(NAME)

seconds: $(READY)  ## predicted against measured seconds of an update, three methods on two models
	$(BIN)/python -m benchmarks.seconds --device $(DEVICE)

critic: $(READY)  ## what a critic costs and earns, and the memory page
	$(BIN)/bakeoff sweeps=memory_group
	$(BIN)/bakeoff sweeps=critic
	$(BIN)/bakeoff-report critic
	$(BIN)/bakeoff-report memory_group

bench: $(READY)  ## seconds of an update by phase, on fixed work
	$(BIN)/python -m benchmarks.updates --device $(DEVICE)

bench-peers: $(READY_PEERS)  ## seconds of an update beside TRL's on the same work, in an environment of its own: half an hour
	$(PEERS)/bin/python -m benchmarks.peers

bench-report: $(READY)  ## seconds to read 1000 runs x 200 steps x 30 metrics
	$(BIN)/python -m benchmarks.report

published: $(READY)  ## predicted memory beside published tables, and what dropping the critic saves
	$(BIN)/python -m benchmarks.published

gpu: $(READY)  ## what a GPU must show: correctness, memory, speed, resuming; GPU="--device cpu --small" runs it without one
	$(BIN)/python -m benchmarks.gpu $(GPU)

wheels: $(READY)  ## what `make gpu` needs on an offline machine with torch, for Python $(WHEELS_PYTHON), in wheels/
	mkdir -p wheels
	grep -iE "^($$(grep -v '^#' requirements.offline | paste -sd'|'))==" requirements.lock > wheels/requirements.txt
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir wheels "$$(grep antlr4 wheels/requirements.txt)"
	$(BIN)/pip download --quiet --no-deps --only-binary=:all: --find-links wheels --dest wheels \
		--python-version $(WHEELS_PYTHON) --implementation cp \
		$(foreach tag,2_34 2_28 2_27 2_17,--platform manylinux_$(tag)_x86_64) --platform manylinux2014_x86_64 \
		--requirement wheels/requirements.txt

vllm: $(READY_VLLM)  ## an environment with vLLM for the CPU in .venv-vllm: there `bakeoff engine=vllm` works

vllm-test: $(READY_VLLM)  ## the contract of an engine over vLLM, and SmolLM2 learns with it: ten minutes or so
	$(VLLM)/bin/python -m bakeoff.model.fetch
	$(VLLM)/bin/python -m pytest -n 0 -k "vllm" tests/engine

smollm2: $(READY)  ## SmolLM2-135M-Instruct into the cache, checksum verified
	$(BIN)/python -m bakeoff.model.fetch

smollm2-study: smollm2  ## the arena's question on SmolLM2-135M: two and a half hours or so on two cores, resumes where it stopped
	$(BIN)/bakeoff sweeps=smollm2 hydra.sweep.dir=outputs/smollm2
	$(BIN)/bakeoff-report smollm2

docs: $(READY)  ## docs/metrics.md and docs/configuration.md, from the code
	$(BIN)/python -m bakeoff.metrics > docs/metrics.md
	$(BIN)/python -m bakeoff.configuration > docs/configuration.md

site: $(SITE)/.ready  ## the docs as a site in site/, with the pages in reports/; every link is checked
	$(SITE)/bin/mkdocs build --quiet --strict

lock: $(READY)  ## write the lock from what is installed
	$(BIN)/pip freeze --exclude bakeoff | sed 's/+cpu$$//' > requirements.lock

clean:
	rm -rf $(patsubst %/.ready,%,$(READY) $(READY_PEERS) $(READY_VLLM) $(READY_LAUNCHERS)) $(SITE) site

$(VENV)/.ready: requirements.lock pyproject.toml
	@echo "setting up $(VENV): about two minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(PEERS)/.ready $(LAUNCHERS)/.ready: $(VENV)-%/.ready: requirements-%.lock requirements.lock pyproject.toml
	@echo "setting up $(@D): about two minutes"
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -r $<
	$(@D)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# vLLM is installed without its dependencies, among them torchvision, which the lock leaves out.
$(VLLM)/.ready: requirements-vllm.lock pyproject.toml
	@echo "setting up $(VLLM): about five minutes"
	$(PYTHON) -m venv $(VLLM)
	grep -v '^vllm' requirements-vllm.lock | $(VLLM)/bin/pip install --quiet --disable-pip-version-check -r /dev/stdin
	grep '^vllm' requirements-vllm.lock | $(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps -r /dev/stdin
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(SITE)/.ready: requirements-site.lock
	@echo "setting up $(SITE): about twenty seconds"
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/pip install --quiet --disable-pip-version-check -r requirements-site.lock
	@touch $@
