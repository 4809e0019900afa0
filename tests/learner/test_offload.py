"""Offloading changes where tensors wait, and nothing else."""

import pytest
import torch

from bakeoff.attribution import PARKED
from bakeoff.learner.offload import Offload
from bakeoff.model.weights import weights_hash
from bakeoff.run import followed, step
from tests.conftest import compose, run_of

SMALL = ["batch.prompts=2", "batch.group_size=2", "sft.steps=0", "tuned=none", "micro_batch=2"]
ARMS = [
    ["algorithm=ppo"],
    ["algorithm=grpo", "model.lora.rank=2"],
    ["algorithm=ppo", "algorithm/critic=adapter", "model.lora.rank=2"],
]


def after_two_updates(folder, *overrides):
    run = run_of(compose(*SMALL, *overrides), folder)
    metrics = []
    for _ in range(2):
        with followed(run):
            metrics.append(step(run)[0])
    return run, metrics[-1]


@pytest.mark.parametrize("overrides", ARMS, ids=lambda o: " ".join(o))
def test_the_run_is_bit_for_bit_the_same_and_needs_less(overrides, tmp_path):
    here, plain = after_two_updates(tmp_path, *overrides)
    there, offloaded = after_two_updates(tmp_path, *overrides, "offload=true")
    assert weights_hash(here.learner.actor.network) == weights_hash(there.learner.actor.network)
    same = [name for name in plain if name.startswith(("policy/", "critic/", "kl/", "reward/"))]
    assert {name: plain[name] for name in same} == {name: offloaded[name] for name in same}
    assert offloaded["memory/rollout_mb"] < plain["memory/rollout_mb"]
    assert offloaded["memory/actor_update_mb"] <= plain["memory/actor_update_mb"]
    if "algorithm=ppo" in overrides and len(overrides) == 1:  # an adapter lies in the network of the actor
        assert "memory/rollout/critic_parameters_mb" not in offloaded
    assert "memory/rollout/actor_optimizer_mb" not in offloaded
    assert offloaded["time/offload"] > 0


def test_a_phase_finds_what_it_uses_and_the_rest_is_parked(tmp_path):
    run = run_of(compose(*SMALL, "algorithm=ppo"), tmp_path)
    step(run)
    learner = run.learner
    offload = Offload(learner, run.phases)
    for phase, on_device in {
        "rollout": {("actor", "parameters")},
        "critic_update": {("critic", "parameters"), ("critic", "optimizer")},
        "reward": {("critic", "parameters"), ("critic", "optimizer")},  # there is no reward model: nothing moves
        "experience": {("actor", "parameters"), ("reference", "parameters"), ("critic", "parameters")},
    }.items():
        offload(phase)
        kinds = {(label.role, label.kind) for _, label in learner.held() if label.kind != PARKED}
        assert kinds == on_device, phase


def test_values_survive_the_way(tmp_path):
    run = run_of(compose(*SMALL, "algorithm=ppo"), tmp_path)
    before = [tensor.clone() for tensor, _ in run.learner.held()]
    offload = Offload(run.learner, run.phases)
    for phase in ("rollout", "critic_update", "experience"):
        offload(phase)
    assert all(torch.equal(a, b) for a, (b, _) in zip(before, run.learner.held(), strict=True))
