"""The learner on the real path: micro-batches, the first minibatch, what trains and what does not."""

from collections import defaultdict

import pytest
import torch

from bakeoff.learner.experience import explained_variance, make_experience
from bakeoff.learner.state import Passes, make_learner
from bakeoff.learner.update import actor_gradient, critic_gradient, measure_step, update
from bakeoff.measure.phase import Phases
from bakeoff.model.forward import completion_logits
from bakeoff.model.build import build
from bakeoff.model.encode import encode
from bakeoff.model.weights import weights_hash
from bakeoff.randomness import generator, stdlib_random
from tests.conftest import compose

CPU = torch.device("cpu")
ARMS = [["algorithm=ppo"], ["algorithm=ppo_kl"], ["algorithm=grpo"], ["algorithm=ppo", "algorithm/critic=shared"]]


def passes(micro_batch=0):
    return Passes(2.0, micro_batch, 0, 11, Phases(CPU))


def prepared(*overrides):
    """A learner from random weights, and its first experience with rewards of 0 and 1."""
    config = compose(*overrides, "tuned=none", "batch.prompts=4", "batch.group_size=4", "algorithm.optimizer.lr=1e-3")
    actor = build(config.model, seed=1)
    actor.network.eval()
    learner = make_learner(config.algorithm, actor, config.model.lora, keep_reference=True, seed=0)
    prompts = encode(actor, config.task.training_examples(4, stdlib_random(0, "p")), [])
    sampler = config.rollout
    sampler.temperature = 2.0
    rollout = sampler(actor, prompts, 4, 11, generator(CPU, 0, "r"))
    scores = config.reward(config.task, rollout)
    scores.outcome = (torch.arange(16) % 3 == 0).float()
    experience, statistics = make_experience(learner, rollout, scores, None, passes())
    return learner, experience, statistics


def gradients(learner):
    return [p.grad.clone() for g in learner.actor_optimizer.param_groups for p in g["params"]]


@pytest.mark.parametrize("overrides", ARMS)
def test_gradients_do_not_depend_on_the_micro_batch(overrides):
    collected = {}
    for size in (0, 1, 5):
        learner, experience, _ = prepared(*overrides)
        actor_gradient(learner, experience, passes(size), defaultdict(list))
        collected[size] = gradients(learner)
        if learner.critic is not None:
            critic_gradient(learner, learner.algorithm.critic, experience, passes(size), defaultdict(list))
            collected[size] += [p.grad.clone() for p in learner.critic.trained().values()]
    assert any(g.abs().max() > 0 for g in collected[0])
    for size in (1, 5):
        for a, b in zip(collected[0], collected[size], strict=True):
            assert torch.allclose(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("overrides", ARMS)
def test_the_first_minibatch_after_a_rollout_is_on_policy(overrides):
    learner, experience, _ = prepared(*overrides)
    statistics = update(learner, experience, passes(), generator(CPU, 0, "m"))
    assert statistics["policy/first_ratio_error"] < 1e-5
    assert statistics["policy/first_clip_fraction"] == 0
    assert statistics["policy/ratio_max"] > 1, "later minibatches are not"
    moved = measure_step(learner, experience, 8, passes())
    assert moved["kl/behaviour_k3_per_token"] > 0


@pytest.mark.parametrize("overrides", ARMS)
def test_what_trains_and_what_is_frozen(overrides):
    learner, experience, _ = prepared(*overrides)
    before = weights_hash(learner.actor.network), weights_hash(learner.reference.network)
    critic = weights_hash(learner.critic.head) if learner.critic else ""
    update(learner, experience, passes(), generator(CPU, 0, "m"))
    assert weights_hash(learner.actor.network) != before[0]
    assert weights_hash(learner.reference.network) == before[1]
    if learner.critic:
        assert weights_hash(learner.critic.head) != critic


def test_the_start_is_the_reference_and_the_critic_says_zero():
    _, experience, statistics = prepared("algorithm=ppo")
    mask = experience.sequences.mask
    assert torch.allclose(experience.behaviour_logprobs[mask], experience.reference_logprobs[mask], atol=1e-5)
    assert experience.values.abs().max() == 0
    assert statistics["kl/reference_k3_per_token"] == pytest.approx(0, abs=1e-9)
    assert statistics["critic/explained_variance"] == pytest.approx(0, abs=1e-6)


def test_critic_warm_up_leaves_the_actor_alone():
    learner, experience, _ = prepared("algorithm=ppo", "algorithm.critic.warmup_updates=1")
    actor, critic = weights_hash(learner.actor.network), weights_hash(learner.critic.head)
    update(learner, experience, passes(), generator(CPU, 0, "m"))
    assert weights_hash(learner.actor.network) == actor
    assert weights_hash(learner.critic.head) != critic
    learner.counters.updates = 1
    update(learner, experience, passes(), generator(CPU, 0, "m"))
    assert weights_hash(learner.actor.network) != actor


def test_explained_variance_by_hand():
    """Returns 0, 1, 2, 3 (variance 1.25); residuals ±½ (variance 0.25): 1 − 0.2."""
    returns = torch.tensor([[0.0, 1.0, 2.0, 3.0, 99.0]])
    values = returns + torch.tensor([[0.5, -0.5, 0.5, -0.5, 7.0]])
    mask = torch.tensor([[True, True, True, True, False]])
    assert explained_variance(values, returns, mask).item() == pytest.approx(0.8)
    assert explained_variance(values, torch.ones(1, 5), mask).item() == 0


def test_lr_schedule_by_hand():
    step = compose(
        "tuned=none", "algorithm.optimizer.warmup_updates=4", "algorithm.optimizer.final_lr_share=0.2"
    ).algorithm.optimizer
    assert step.lr_factor(0, 0.0) == pytest.approx(0.25)
    assert step.lr_factor(3, 0.0) == pytest.approx(1.0)
    assert step.lr_factor(50, 0.5) == pytest.approx(0.6)
    assert step.lr_factor(99, 1.0) == pytest.approx(0.2)


def test_the_actor_is_evaluated_again_only_where_that_tells_something_new():
    """In float32 the sampler's log-probs serve; with a head on the trunk, or in bfloat16, the actor runs again."""
    assert "kl/reference_exact_per_token" not in prepared("algorithm=grpo")[2]
    for overrides in (["algorithm=ppo", "algorithm/critic=shared"], ["model.precision=bfloat16"]):
        _, experience, statistics = prepared(*overrides)
        assert statistics["kl/reference_exact_per_token"] == pytest.approx(0, abs=1e-6)
        assert torch.equal(experience.behaviour_logprobs, experience.reference_logprobs)
        assert statistics["rollout/sampler_mismatch"] < 0.1


def test_sampled_entropy_is_that_of_the_training_forward():
    learner, experience, statistics = prepared("algorithm=grpo")
    logits = completion_logits(learner.actor, experience.sequences, 2.0)
    entropies = torch.distributions.Categorical(logits=logits).entropy()
    expected = entropies[experience.sequences.mask].mean().item()
    assert statistics["policy/entropy"] == pytest.approx(expected, abs=1e-5)


def test_the_critic_recomputes_its_activations_as_the_actor_does():
    """Were it not in training mode, it would recompute nothing, and read every prompt of a group besides."""
    learner, experience, _ = prepared("algorithm=ppo", "model.gradient_checkpointing=true")
    settings = passes()
    with settings.phases.following(learner.held()):
        update(learner, experience, settings, generator(CPU, 0, "m"))
    peaks = settings.phases.take().peaks
    actor, critic = (peaks[f"{role}_update"].cells[role, "activations"] for role in ("actor", "critic"))
    assert critic == pytest.approx(actor, rel=0.05)
