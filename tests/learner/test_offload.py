"""Offloading changes where tensors are stored, and nothing else."""

import pytest
import torch

from bakeoff.attribution import PARKED
from bakeoff.device import HOST
from bakeoff.learner.holdings import held
from bakeoff.learner.offload import place_for
from bakeoff.loop import update_once
from bakeoff.model.weights import weights_hash
from tests.conftest import compose, loop_of, update_of

SMALL = [
    *("batch.prompts=2", "batch.group_size=2", "sft.steps=0", "tuned=none", "micro_tokens=30"),
    *("algorithm.optimizer.epochs=1", "++model.architecture.num_hidden_layers=1"),
]
ARMS = [
    ["algorithm=ppo"],
    ["algorithm=grpo", "model.lora.rank=2"],
    ["algorithm=ppo", "algorithm/critic=adapter", "model.lora.rank=2"],
]


def after_two_updates(*overrides):
    loop = loop_of(compose(*SMALL, *overrides))
    update_of(loop, traced=True)
    return loop, update_of(loop, traced=True)


@pytest.mark.parametrize("overrides", ARMS, ids=lambda o: " ".join(o))
def test_an_offloaded_run_is_bit_for_bit_the_same_and_needs_less_memory(overrides):
    here, plain = after_two_updates(*overrides)
    there, offloaded = after_two_updates(*overrides, "offload=true")
    assert weights_hash(here.learner.actor.network) == weights_hash(there.learner.actor.network)
    same = [name for name in plain if name.startswith(("policy/", "critic/", "kl/", "reward/"))]
    assert {name: plain[name] for name in same} == {name: offloaded[name] for name in same}
    assert offloaded["memory/rollout_mb"] < plain["memory/rollout_mb"]
    assert offloaded["memory/actor_update_mb"] <= plain["memory/actor_update_mb"]
    if "algorithm=ppo" in overrides and len(overrides) == 1:  # an adapter is part of the actor's network
        assert "memory/rollout/critic_parameters_mb" not in offloaded
    assert "memory/rollout/actor_optimizer_mb" not in offloaded
    assert offloaded["time/offload"] > 0


def test_only_the_models_that_a_phase_uses_are_on_the_device():
    learner = after_two_updates("algorithm=ppo")[0].learner
    for phase, on_device in {
        "rollout": {("actor", "parameters")},
        "critic_update": {("critic", "parameters"), ("critic", "optimizer")},
        "reward": {("critic", "parameters"), ("critic", "optimizer")},  # there is no reward model: nothing moves
        "experience": {("actor", "parameters"), ("reference", "parameters"), ("critic", "parameters")},
    }.items():
        place_for(learner, phase, HOST)
        kinds = {(label.role, label.kind) for _, label in held(learner) if label.kind != PARKED}
        assert kinds == on_device, phase


def test_moved_tensors_keep_their_values():
    loop = loop_of(compose(*SMALL, "algorithm=ppo"))
    update_once(loop)
    before = [tensor.clone() for tensor, _ in held(loop.learner)]
    for phase in ("rollout", "critic_update", "experience"):
        place_for(loop.learner, phase, HOST)
    assert all(torch.equal(a, b) for a, (b, _) in zip(before, held(loop.learner), strict=True))
