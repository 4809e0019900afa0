"""Exact identities between methods, on numbers that hypothesis draws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bakeoff.algorithm import advantage, aggregate, baseline, objective, ratio, scale
from bakeoff.algorithm.loss import place_scores
from bakeoff.batch import Rewards, Tokens
from bakeoff.rows import select

numbers = st.floats(-10, 10, allow_nan=False, width=32)


@st.composite
def batches(draw, smallest_group=2):
    """Rewards of P groups of G completions of unequal length, in float64, and a generator."""
    prompts, group, width = draw(st.integers(1, 4)), draw(st.integers(smallest_group, 5)), draw(st.integers(1, 6))
    size = prompts * group
    lengths = torch.tensor(draw(st.lists(st.integers(1, width), min_size=size, max_size=size)))
    scores = torch.tensor(draw(st.lists(numbers, min_size=size, max_size=size)), dtype=torch.float64)
    mask = torch.arange(width) < lengths[:, None]
    return place_scores(scores, mask, group), torch.Generator().manual_seed(draw(st.integers(0, 2**31)))


def noise(shape, draw):
    return torch.randn(shape, generator=draw, dtype=torch.float64)


@given(batches())
@settings(deadline=None, max_examples=50)
def test_rloo_is_the_centred_return_times_g_over_g_minus_one(batch):
    """R_i − mean of the others = G/(G − 1)·(R_i − mean)."""
    rewards, _ = batch
    group = rewards.group_size
    returns = advantage.SequenceReturn()
    out, centred = (
        returns(rewards.tokens - b(rewards), None, rewards.mask)[0]
        for b in (baseline.LeaveOneOut(), baseline.GroupMean())
    )
    assert torch.allclose(out, group / (group - 1) * centred, atol=1e-9)


@given(batches(1))
@settings(deadline=None, max_examples=50)
def test_on_policy_every_surrogate_has_the_gradient_of_reinforce(batch):
    rewards, draw = batch
    mask = rewards.mask
    old, advantages = noise(mask.shape, draw), noise(mask.shape, draw)
    old = torch.where(mask, old, 0.0)
    weights = aggregate.PerToken()(mask, mask.shape[1])
    gradients = []
    for surrogate in (
        objective.Reinforce(),
        objective.RatioObjective(),
        objective.TruncatedRatio(),
        objective.Clip(),
        objective.Clip(epsilon_high=0.28),
        objective.Cispo(),
        objective.BinaryTotalVariation(),
        objective.DualClip(),
        objective.SequenceMask(),
        objective.SoftGate(),
    ):
        logprobs = old.clone().requires_grad_()
        tokens = Tokens(logprobs, old, advantages, mask)
        (weights * surrogate(ratio.TokenRatio()(tokens), tokens)).sum().backward()
        gradients.append(logprobs.grad)
    for gradient in gradients[1:]:
        assert torch.allclose(gradient, gradients[0], atol=1e-12)


@given(batches(1))
@settings(deadline=None, max_examples=50)
def test_the_gspo_ratio_to_the_power_of_the_length_is_the_sequence_ratio(batch):
    rewards, draw = batch
    mask = rewards.mask
    logprobs, old = (torch.where(mask, noise(mask.shape, draw), 0.0) for _ in range(2))
    tokens = Tokens(logprobs, old, torch.ones_like(old), mask)
    geometric, whole = ratio.SequenceMeanRatio()(tokens), ratio.SequenceRatio()(tokens)
    assert torch.allclose(geometric ** mask.sum(1, keepdim=True), whole, rtol=1e-9)


@given(batches(1))
@settings(deadline=None, max_examples=50)
def test_gae_at_lambda_one_without_values_is_the_reward_to_go(batch):
    rewards, draw = batch
    tokens = noise(rewards.mask.shape, draw)
    gae, targets = advantage.GAE(lam=1.0)(tokens, 0 * tokens, rewards.mask)
    to_go, _ = advantage.RewardToGo()(tokens, None, rewards.mask)
    assert torch.allclose(gae, to_go, atol=1e-9)
    assert torch.allclose(targets, to_go, atol=1e-9)


@given(batches(1))
@settings(deadline=None, max_examples=50)
def test_decoupled_gae_with_equal_lambdas_is_gae(batch):
    rewards, draw = batch
    tokens, values = noise(rewards.mask.shape, draw), noise(rewards.mask.shape, draw)
    plain = advantage.GAE(lam=0.9)(tokens, values, rewards.mask)
    decoupled = advantage.DecoupledGAE(lam=0.9, lam_critic=0.9)(tokens, values, rewards.mask)
    for x, y in zip(plain, decoupled, strict=True):
        assert torch.allclose(x, y, atol=1e-12)


@given(batches(1))
@settings(deadline=None, max_examples=50)
def test_the_first_reward_to_go_is_the_sequence_return(batch):
    rewards, draw = batch
    tokens = noise(rewards.mask.shape, draw)
    to_go, _ = advantage.RewardToGo()(tokens, None, rewards.mask)
    whole, _ = advantage.SequenceReturn()(tokens, None, rewards.mask)
    assert torch.allclose(to_go[:, 0], whole[:, 0], atol=1e-9)


@given(batches())
@settings(deadline=None, max_examples=50)
def test_process_supervision_by_one_final_step_is_outcome_supervision(batch):
    """Each completion has one step, which ends on its last token."""
    rewards, _ = batch
    process = advantage.RewardToGo()(rewards.tokens - baseline.GroupStepMean()(rewards), None, rewards.mask)[0]
    outcome = advantage.SequenceReturn()(rewards.tokens - baseline.GroupMean()(rewards), None, rewards.mask)[0]
    scaled = scale.GroupStepStd()(process, rewards), scale.GroupStd()(outcome, rewards)
    assert torch.allclose(*scaled, atol=1e-6)


@given(batches())
@settings(deadline=None, max_examples=50)
def test_sums_are_the_token_budget_times_its_size_and_every_sequence_has_equal_weight(batch):
    mask = batch[0].mask
    sums, fixed = aggregate.Sums()(mask, 7), aggregate.TokenBudget()(mask, 7)
    assert torch.allclose(sums, 7 * fixed)
    assert torch.allclose(aggregate.PerSequence()(mask, 7).sum(1) * len(mask), torch.ones(len(mask)).double())
    assert aggregate.PerToken()(mask, 7).sum().item() == pytest.approx(1)


@given(batches())
@settings(deadline=None, max_examples=50)
def test_padding_and_the_order_of_groups_change_no_baseline_and_no_scale(batch):
    rewards, draw = batch
    rubbish = torch.where(rewards.mask, rewards.tokens, noise(rewards.mask.shape, draw))
    spoilt = Rewards(rubbish, rewards.process, rewards.last, rewards.mask, rewards.group_size)
    groups = len(rewards.mask) // rewards.group_size
    rows = torch.arange(len(rewards.mask)).view(groups, -1).flip(0).flatten()
    turned = select(rewards, rows)
    outcomes = (baseline.GroupMean(), baseline.LengthWeightedMean(), baseline.LeaveOneOut())
    for option in (baseline.BatchMean(), *outcomes, baseline.GroupStepMean()):
        assert torch.allclose(option(spoilt), option(rewards), atol=1e-12)
        assert torch.allclose(option(turned), option(rewards)[rows], atol=1e-9)
    groups = (scale.GroupStd(), scale.GroupShare(), scale.NonzeroShare())
    for option in (scale.Whiten(), *groups, scale.BatchStd(), scale.GroupStepStd()):
        advantages = noise(rewards.mask.shape, draw) * rewards.mask
        expected = option(advantages, rewards)
        assert torch.allclose(option(advantages, spoilt), expected, atol=1e-9)
        assert torch.allclose(option(advantages[rows], turned), expected[rows], atol=1e-9)
