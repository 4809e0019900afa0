"""Checkpoints are complete and atomic, and only the last few are kept."""

import pytest
import torch
from safetensors.torch import load_file

from bakeoff.learner.checkpoint import checkpoints, load_checkpoint, read_run, save_checkpoint
from bakeoff.learner.learner import make_learner
from bakeoff.model.build import build
from bakeoff.model.weights import weights_hash
from tests.conftest import compose


def learner_of(*overrides, seed=0):
    config = compose(*overrides)
    return make_learner(config, build(config.model, seed))


def one_step(learner, draw):
    for optimizer in filter(None, (learner.actor_optimizer, learner.critic_optimizer)):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm=ppo"],
        ["algorithm=ppo", "algorithm/critic=shared", "tuned=none"],
        ["algorithm=ppo", "algorithm/critic=adapter", "model.lora.rank=2", "tuned=none"],
        ["algorithm=ppo", "algorithm/critic=adapter", "tuned=none"],
        ["algorithm=trpo", "tuned=none"],
        [],
    ],
)
def test_a_restored_learner_takes_the_same_next_step(overrides, tmp_path):
    draw = torch.Generator().manual_seed(0)
    learner = learner_of(*overrides)
    one_step(learner, draw)
    learner.counters.updates, learner.counters.seconds, learner.betas.behaviour = 7, 1 / 3, 0.1
    save_checkpoint(tmp_path, learner, {"seed": 0}, keep=2)
    other = learner_of(*overrides)  # the same start, then another step
    one_step(other, torch.Generator().manual_seed(5))
    other = load_checkpoint(checkpoints(tmp_path)[-1], other)
    for each in (learner, other):
        one_step(each, torch.Generator().manual_seed(1))
    assert weights_hash(other.actor.network) == weights_hash(learner.actor.network)
    assert (other.counters, other.betas) == (learner.counters, learner.betas)
    if learner.critic is not None:
        assert weights_hash(other.critic.trunk.backbone) == weights_hash(learner.critic.trunk.backbone)
        assert weights_hash(other.critic.head) == weights_hash(learner.critic.head)
    if learner.head is not None:
        assert weights_hash(other.head) == weights_hash(learner.head)


def test_only_the_last_few_checkpoints_are_kept_and_partial_ones_are_ignored(tmp_path):
    learner = learner_of()
    for updates in (5, 10, 15):
        learner.counters.updates = updates
        save_checkpoint(tmp_path, learner, {"seed": updates}, keep=2)
    (tmp_path / ".update_000020.partial").mkdir()
    (tmp_path / "update_000020").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["update_000010", "update_000015"]
    assert read_run(checkpoints(tmp_path)[-1]) == {"seed": 15}


def test_a_tied_weight_is_saved_once(tmp_path):
    learner = learner_of("algorithm=ppo")
    network = learner.actor.network
    assert network.get_input_embeddings().weight is network.get_output_embeddings().weight
    names = load_file(save_checkpoint(tmp_path, learner, {}, keep=1) / "actor.safetensors").keys()
    assert len(names) == len(list(network.parameters()))
    assert [name for name in names if "lm_head" in name] == []
