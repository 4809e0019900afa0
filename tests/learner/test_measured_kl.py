"""KL to the start and to the behaviour policy: what is measured, of which samples, and who pays for it."""

import pytest

from bakeoff.algorithm.kl import estimate_kl
from bakeoff.loop import update_once
from bakeoff.measure import TRAINING
from bakeoff.metrics import update_metrics
from bakeoff.model.logprobs import completion_logprobs
from bakeoff.model.weights import frozen_copy, weights_hash
from tests.conftest import compose, loop_of, update_of

SMALL = [
    *("batch.prompts=4", "batch.group_size=4", "tuned=none", "task.heldout=4", "task.digits=2"),
    *("sft.steps=60", "sft.accuracy=0", "algorithm.optimizer.lr=1e-2", "++model.architecture.num_hidden_layers=1"),
]
RENEWED = ["algorithm=grpo_iterative", "algorithm.kl_to_reference.iteration_updates=1"]
ADAPTER = ["algorithm=ppo", "algorithm/kl_to_reference=none", "algorithm/critic=adapter"]
ARMS = [
    ["algorithm=grpo"],
    ["algorithm=dr_grpo"],
    ["algorithm=dr_grpo", "offload=true", "micro_tokens=60"],
    ["algorithm=dr_grpo", "model.lora.rank=2"],
    RENEWED,
    [*RENEWED, "offload=true"],
    [*RENEWED, "model.lora.rank=2"],
    ADAPTER,
    [*ADAPTER, "offload=true"],
]


@pytest.mark.parametrize("overrides", ARMS, ids=lambda o: " ".join(o))
def test_the_kl_that_is_reported_is_to_the_start_whatever_reference_the_method_has(overrides):
    config = compose(*SMALL, *overrides)
    loop = loop_of(config)
    start = frozen_copy(loop.learner.actor)  # an adapter in it changes nothing yet
    for _ in range(3):
        update = update_once(loop)
    rollout = update.collected.rollout
    logprobs = completion_logprobs(start, rollout.sequences, loop.learner.forward)
    expected = estimate_kl(rollout.sampler_logprobs, logprobs, rollout.sequences.mask)
    metrics = update_metrics(update, loop.learner.counters)
    for name, value in vars(expected).items():
        assert metrics[f"kl/reference_{name}"] == pytest.approx(float(value), rel=1e-3, abs=1e-6)
    assert metrics["kl/reference_k3_per_sequence"] > 1e-4


@pytest.mark.parametrize("overrides", [["algorithm=dr_grpo"], ["algorithm=dapo"]], ids=lambda o: o[0])
def test_a_method_without_kl_pays_neither_time_nor_memory_for_what_is_measured(overrides):
    found, weights = {}, set()
    for measured in ("true", "false"):
        loop = loop_of(compose(*SMALL, *overrides, f"measure.kl_to_start={measured}"))
        update_of(loop, traced=True)
        found[measured] = update_of(loop, traced=True)
        weights.add(weights_hash(loop.learner.actor.network))
    assert len(weights) == 1, "measuring changes nothing"
    peaks = {f"memory/{phase}_mb" for phase in TRAINING} & set(found["true"])
    assert len(peaks) >= 4
    assert {name: found["true"][name] for name in peaks} == {name: found["false"][name] for name in peaks}
    assert found["true"]["memory/peak_mb"] == found["false"]["memory/peak_mb"]
    assert "memory/experience/reference_parameters_mb" not in found["true"]
    assert found["true"]["memory/measure/reference_parameters_mb"] > 0.1
    assert not any(name.startswith("kl/reference_") for name in found["false"])


def test_an_iterative_method_logs_no_kl_where_none_is_measured():
    metrics = update_of(loop_of(compose(*SMALL, *RENEWED, "measure.kl_to_start=false")))
    assert not any(name.startswith("kl/reference_") for name in metrics)


def test_a_kl_that_beta_follows_is_of_the_whole_rollout_and_is_part_of_training():
    loop = loop_of(compose(*SMALL, "algorithm=ppo_kl", "measure.kl_sequences=1"))
    before = loop.learner.betas.behaviour
    update = update_once(loop)
    rollout = update.collected.rollout
    logprobs = completion_logprobs(loop.learner.actor, rollout.sequences, loop.learner.forward)
    whole = estimate_kl(rollout.sampler_logprobs, logprobs, rollout.sequences.mask)
    assert update.kl.k3_per_token == pytest.approx(float(whole.k3_per_token), rel=1e-3)
    assert loop.learner.betas.behaviour == loop.learner.algorithm.kl_to_behaviour.adapt(before, update.kl.k3_per_token)
    seconds = update.measured.seconds
    assert update.seconds == pytest.approx(sum(value for phase, value in seconds.items() if phase != "measure"))
    assert seconds["behaviour_kl"] > 0


@pytest.mark.parametrize("method", ["grpo", "ppo", "ppo_penalty"])
def test_a_kl_that_no_rule_reads_is_measured_of_as_many_sequences_as_are_asked_for(method):
    loop = loop_of(compose(*SMALL, f"algorithm={method}", "measure.kl_sequences=2"))
    update = update_once(loop)
    rollout = update.collected.rollout
    logprobs = completion_logprobs(loop.learner.actor, rollout.sequences, loop.learner.forward)
    first = estimate_kl(rollout.sampler_logprobs[:2], logprobs[:2], rollout.sequences.mask[:2])
    assert update.kl.k3_per_token == pytest.approx(float(first.k3_per_token), rel=1e-3)
    assert "behaviour_kl" not in update.measured.seconds
