"""The learner in a real update: micro-batches, the first minibatch, trained and frozen weights."""

from dataclasses import replace

import pytest
import torch

from bakeoff.engine.engine import Request, make_rollout
from bakeoff.learner.experience import explained_variance, forward_passes, make_experience
from bakeoff.learner.holdings import held
from bakeoff.learner.learner import make_learner
from bakeoff.learner.update import (
    actor_gradient,
    critic_gradient,
    effective_share,
    measure_step,
    update_actor,
    update_critic,
)
from bakeoff.loop import update_once
from bakeoff.measure.phase import Phases
from bakeoff.model.build import build
from bakeoff.model.encode import encode
from bakeoff.model.weights import weights_hash
from bakeoff.randomness import generator, stdlib_random
from tests.conftest import compose, loop_of
from tests.passes import completion_logits

CPU = torch.device("cpu")
ARMS = [["algorithm=ppo"], ["algorithm=ppo_kl"], ["algorithm=grpo"], ["algorithm=ppo", "algorithm/critic=shared"]]


def prepared(*overrides, architecture=None):
    """A learner with random weights, its first experience with scores of 0 and 1, and the experience's statistics."""
    config = compose(
        *("tuned=none", "batch.prompts=4", "batch.group_size=4", "algorithm.optimizer.lr=1e-3"),
        *("sampling.temperature=2.0", *overrides),
    )
    actor = build(replace(config.model, architecture=architecture or config.model.architecture), seed=1)
    actor.network.eval()
    learner = make_learner(config, actor)
    prompts = encode(actor, config.task.training_examples(4, stdlib_random(0, "p")), [])
    engine = config.engine
    engine.load(actor)
    request = Request(prompts, 4, config.sampling, 11, seed=1)
    rollout = make_rollout(actor, request, engine.generate(request))
    scores = config.reward(config.task, rollout)
    scores.outcome = (torch.arange(16) % 3 == 0).float()
    experience, statistics = make_experience(learner, rollout, scores, None, engine.exact_logprobs, draws())
    return learner, experience, statistics


def draws():
    return generator(CPU, 0, "m")


def update(learner, experience):
    """The steps of actor and critic."""
    order = draws()
    return update_actor(learner, experience, order), update_critic(learner, experience, order)


def gradients(learner):
    return [p.grad.clone() for g in learner.actor_optimizer.param_groups for p in g["params"]]


@pytest.mark.parametrize("overrides", ARMS)
def test_gradients_do_not_depend_on_the_micro_batches(overrides):
    collected = {}
    for size in (0, 1, 60):
        learner, experience, _ = prepared(*overrides)
        learner.forward.micro_tokens = size
        actor_gradient(learner, experience)
        collected[size] = gradients(learner)
        if learner.critic is not None:
            critic_gradient(learner, learner.algorithm.critic, experience)
            collected[size] += [p.grad.clone() for p in learner.critic.trained().values()]
    assert any(g.abs().max() > 0 for g in collected[0])
    for size in (1, 60):
        for a, b in zip(collected[0], collected[size], strict=True):
            assert torch.allclose(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("overrides", ARMS)
def test_the_first_minibatch_after_a_rollout_is_on_policy(overrides):
    learner, experience, _ = prepared(*overrides)
    steps, _ = update(learner, experience)
    assert steps[0].minibatch.ratio_error < 1e-5
    assert steps[0].minibatch.clip_fraction == 0
    assert max(step.minibatch.ratio_max for step in steps[1:]) > 1, "later minibatches are off policy"
    assert measure_step(learner, experience, 8).k3_per_token > 0


@pytest.mark.parametrize("overrides", ARMS)
def test_actor_and_critic_train_and_the_reference_is_frozen(overrides):
    learner, experience, _ = prepared(*overrides)
    before = weights_hash(learner.actor.network), weights_hash(learner.reference.network)
    critic = weights_hash(learner.critic.head) if learner.critic else ""
    update(learner, experience)
    assert weights_hash(learner.actor.network) != before[0]
    assert weights_hash(learner.reference.network) == before[1]
    if learner.critic:
        assert weights_hash(learner.critic.head) != critic


def test_at_the_start_actor_and_reference_agree_and_every_value_is_zero():
    _, experience, statistics = prepared("algorithm=ppo")
    mask = experience.sequences.mask
    assert torch.allclose(experience.behaviour_logprobs[mask], experience.reference_logprobs[mask], atol=1e-5)
    assert experience.values.abs().max() == 0
    assert float(statistics.reference.k3_per_token) == pytest.approx(0, abs=1e-9)
    assert float(statistics.explained_variance) == pytest.approx(0, abs=1e-6)


def test_critic_warm_up_leaves_the_actor_unchanged():
    few = ["sft.steps=0", "task.heldout=4", "batch.prompts=4", "batch.group_size=2", "tuned=none"]
    loop = loop_of(compose("algorithm=ppo", "algorithm.critic.warmup_updates=1", "algorithm.optimizer.lr=1e-3", *few))
    learner = loop.learner
    learner.critic.head.linear.bias.data += 1.0  # far from the returns, which are zero
    actor, critic = weights_hash(learner.actor.network), weights_hash(learner.critic.head)
    assert update_once(loop).actor == []
    assert weights_hash(learner.actor.network) == actor
    assert weights_hash(learner.critic.head) != critic
    assert len(update_once(loop).actor) == 4
    assert weights_hash(learner.actor.network) != actor


def test_no_coefficient_adapts_while_the_critic_alone_learns():
    few = ["sft.steps=0", "task.heldout=4", "batch.prompts=4", "batch.group_size=2", "tuned=none"]
    loop = loop_of(compose("algorithm=ppo_kl", "algorithm.critic.warmup_updates=2", *few))
    start = replace(loop.learner.betas)
    assert [update_once(loop).betas for _ in range(3)] == [start] * 3
    assert loop.learner.betas != start, "the actor has taken steps"


def test_explained_variance_is_one_minus_the_residual_share_of_the_variance_of_returns():
    """Returns 0, 1, 2, 3 (variance 1.25); residuals ±½ (variance 0.25): 1 − 0.2."""
    returns = torch.tensor([[0.0, 1.0, 2.0, 3.0, 99.0]])
    values = returns + torch.tensor([[0.5, -0.5, 0.5, -0.5, 7.0]])
    mask = torch.tensor([[True, True, True, True, False]])
    assert explained_variance(values, returns, mask).item() == pytest.approx(0.8)
    assert explained_variance(values, torch.ones(1, 5), mask).item() == 0


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-44, 1e8])
def test_the_effective_sample_size_does_not_depend_on_the_scale_of_the_weights(scale):
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    weights = torch.tensor([[1.0, 1.0, 1.0, 9.0], [1.0, 0.0, 9.0, 9.0]])
    assert effective_share(scale * weights, mask) == pytest.approx(16 / 20)
    assert effective_share(torch.zeros(2, 4), mask) == 0, "every ratio has underflown"


def test_the_learning_rate_warms_up_and_then_falls_linearly():
    optimizer = compose(
        "tuned=none", "algorithm.optimizer.lr_warmup_updates=4", "algorithm.optimizer.final_lr_share=0.2"
    ).algorithm.optimizer
    assert optimizer.lr_factor(0, 0.0) == pytest.approx(0.25)
    assert optimizer.lr_factor(3, 0.0) == pytest.approx(1.0)
    assert optimizer.lr_factor(50, 0.5) == pytest.approx(0.6)
    assert optimizer.lr_factor(99, 1.0) == pytest.approx(0.2)


def test_the_actor_runs_again_only_where_the_engine_is_not_exact_or_values_are_needed():
    """In float32 the engine's log-probs suffice; with a head on the trunk, or in bfloat16, the actor runs again."""
    assert prepared("algorithm=grpo")[2].reference_exact is None
    for overrides in (["algorithm=ppo", "algorithm/critic=shared"], ["model.precision=bfloat16"]):
        _, experience, statistics = prepared(*overrides)
        assert float(statistics.reference_exact) == pytest.approx(0, abs=1e-6)
        assert torch.equal(experience.behaviour_logprobs, experience.reference_logprobs)
        assert statistics.sampler.mismatch < 0.1


def test_sampled_entropy_is_that_of_the_training_forward():
    learner, experience, statistics = prepared("algorithm=grpo")
    logits = completion_logits(learner.actor, experience.sequences, 2.0)
    entropies = torch.distributions.Categorical(logits=logits).entropy()
    expected = entropies[experience.sequences.mask].mean().item()
    assert float(statistics.entropy) == pytest.approx(expected, abs=1e-5)


def test_the_critic_recomputes_its_activations_as_the_actor_does():
    """Outside training mode it would recompute nothing."""
    learner, experience, _ = prepared("algorithm=ppo", "model.gradient_checkpointing=true")
    phases, order = Phases(CPU), draws()
    with phases.tracing(held(learner)):
        with phases("actor_update"):
            update_actor(learner, experience, order)
        with phases("critic_update"):
            update_critic(learner, experience, order)
    peaks = phases.take().peaks
    actor, critic = (peaks[f"{role}_update"].cells[role, "activations"] for role in ("actor", "critic"))
    assert critic == pytest.approx(actor, rel=0.05)


@pytest.mark.parametrize(
    ("architecture", "shares"),
    [(None, True), ({"model_type": "mpt", "d_model": 32, "n_heads": 2, "n_layers": 1, "max_seq_len": 64}, False),
     ({"model_type": "bloom", "hidden_size": 32, "n_head": 2, "n_layer": 1}, False)],
)  # fmt: skip
def test_no_pass_reads_more_tokens_than_the_bound_whatever_the_network_makes_of_a_group(architecture, shares):
    learner, experience, _ = prepared("micro_tokens=40", "algorithm=ppo", architecture=architecture)
    assert learner.forward.shares_prompts == shares
    read: list[int] = []

    def record(network, positional, named):
        read.append(named["input_ids"].numel())

    for network in (learner.actor.network.base_model, learner.critic.trunk.backbone):
        network.register_forward_pre_hook(record, with_kwargs=True)
    forward_passes(learner, experience.sequences, exact_logprobs=False)
    update(learner, experience)
    assert len(read) > 20
    assert max(read) <= 40
