"""Extreme log-ratios, groups and batches: losses and gradients stay finite, whatever the options of a method."""

import itertools
import math

import pytest
import torch

from bakeoff.algorithm import AXES, Algorithm
from bakeoff.algorithm.kl import MOST_BETA, AdaptivePenalty, InRewardAdaptive
from bakeoff.algorithm.loss import advantages_and_returns, place_scores, policy_loss
from bakeoff.batch import Tokens

CHOICES = {
    "ratio": "token",
    "objective": "clip",
    "kl_to_reference": "none",
    "kl_to_behaviour": "none",
    "entropy": "none",
}
OTHERS = {
    **dict.fromkeys(("group_filter", "shaping", "critic", "baseline", "scale"), "none"),
    **{"advantage": "sequence_return", "aggregate": "tokens", "optimizer": "adam"},
}
EVERY = [(axis, option) for axis in CHOICES for option in AXES[axis]]


def algorithm(**choices: str) -> Algorithm:
    return Algorithm(**{axis: AXES[axis][option] for axis, option in (OTHERS | CHOICES | choices).items()})


@pytest.mark.parametrize(
    ("drift", "length"), list(itertools.product([-300.0, -95.0, -0.3, 0.3, 95.0, 300.0], [1, 400]))
)
@pytest.mark.parametrize(("axis", "option"), EVERY)
def test_no_log_ratio_makes_a_loss_or_a_gradient_infinite(axis, option, drift, length):
    choices = {axis: option} | ({"ratio": "sequence"} if axis == "objective" and length > 1 else {})
    method, mask = algorithm(**choices), torch.ones(3, length, dtype=torch.bool)
    logprobs = torch.full((3, length), -1.0, requires_grad=True)
    advantages = torch.tensor([[1.0], [0.0], [-1.0]]).expand(3, length)
    tokens = Tokens(logprobs, logprobs.detach() - drift, advantages, mask)
    loss = policy_loss(method, tokens, method.aggregate(mask, length), reference=logprobs.detach() + drift).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logprobs.grad).all()


@pytest.mark.parametrize("sequence_ratio", [False, True])
def test_a_clipped_token_has_no_gradient_where_its_ratio_would_overflow(sequence_ratio):
    method, mask = algorithm(ratio="sequence" if sequence_ratio else "token"), torch.ones(1, 2, dtype=torch.bool)
    logprobs = torch.zeros(1, 2, requires_grad=True)
    tokens = Tokens(logprobs, logprobs.detach() - 94.0, torch.ones(1, 2), mask)
    policy_loss(method, tokens, method.aggregate(mask, 2)).loss.backward()
    assert torch.equal(logprobs.grad, torch.zeros(1, 2))


@pytest.mark.parametrize("scale", [name for name, option in AXES["scale"].items() if not option.needs_process_rewards])
@pytest.mark.parametrize("scores", [[1.0], [1.0, 1.0], [0.0, 1e30], [1e-30, 0.0]])
def test_equal_or_single_returns_give_advantages_of_zero_and_no_scale_gives_nan(scale, scores):
    option, mask = AXES["scale"][scale], torch.ones(len(scores), 2, dtype=torch.bool)
    if len(scores) < option.smallest_group:
        pytest.skip("refused before a run starts")
    rewards = place_scores(torch.tensor(scores), mask, len(scores))
    advantages, _ = advantages_and_returns(algorithm(scale=scale), rewards, None)
    assert torch.isfinite(advantages).all()
    if scale != "none" and len(set(scores)) == 1:
        assert torch.equal(advantages, torch.zeros_like(advantages))


@pytest.mark.parametrize("episodes", [1, 512, 8192, 10**6])
@pytest.mark.parametrize("nats", [0.0, 6.0, 1e9])
def test_an_adaptive_beta_never_changes_its_sign(episodes, nats):
    beta = 0.1
    for _ in range(20):
        beta = InRewardAdaptive(horizon_episodes=1000).adapt(beta, nats, episodes)
        assert beta > 0


@pytest.mark.parametrize("nats", [0.0, 1e-3, 1.0, math.inf])
def test_an_adaptive_beta_stays_where_a_gradients_norm_is_a_number(nats):
    """Also where a target is one that no coefficient reaches."""
    first, second = AdaptivePenalty(target_nats_per_token=1e-9), InRewardAdaptive(target_nats_per_sequence=1e-9)
    betas = [first.beta, second.beta]
    for _ in range(2000):
        betas = [first.adapt(betas[0], nats), second.adapt(betas[1], nats, 10**6)]
        assert all(0 <= beta <= MOST_BETA for beta in betas)
    assert torch.isfinite(torch.tensor(betas).square().sum())


def rewards_of(scores, lengths, group):
    mask = torch.arange(max(*lengths, 1)) < torch.tensor(lengths)[:, None]
    return place_scores(torch.tensor(scores), mask, group)


@pytest.mark.parametrize("name", ["maxrl", "gpg"])
@pytest.mark.parametrize("scores", [[0.0] * 4, [0.0, 0.0, 1.0, 1.0]])
def test_scores_of_zero_throughout_or_without_spread_give_advantages_of_exactly_zero(name, scores):
    method = algorithm(scale=name, baseline="group_mean")
    advantages, _ = advantages_and_returns(method, rewards_of(scores, [2, 1, 2, 2], 2), None)
    assert torch.equal(advantages, torch.zeros_like(advantages))


def test_maxrl_gives_a_group_whose_mean_is_not_above_zero_no_advantage():
    method = algorithm(scale="maxrl", baseline="group_mean")
    advantages, _ = advantages_and_returns(method, rewards_of([-1.0, 1.0, -1.0, 0.0, 0.0, 1.0], [1] * 6, 2), None)
    assert advantages.flatten().tolist() == pytest.approx([0, 0, 0, 0, -0.5 / 0.5001, 0.5 / 0.5001])


def test_gpg_weighs_by_completions_over_completions_with_a_score():
    method = algorithm(scale="gpg", baseline="group_mean")
    advantages, _ = advantages_and_returns(method, rewards_of([1.0, 0.0, 0.0, 0.0], [1] * 4, 2), None)
    assert advantages.flatten().tolist() == pytest.approx([2, -2, 0, 0])


def test_opo_weighs_returns_by_length():
    """Lengths 1 and 3, scores 1 and 0: the baseline is 1/4."""
    rewards = rewards_of([1.0, 0.0], [1, 3], 2)
    assert AXES["baseline"]["opo"](rewards).sum(1).tolist() == pytest.approx([0.25, 0.25])


@pytest.mark.parametrize("name", AXES["baseline"])
@pytest.mark.parametrize("lengths", [[0, 2, 1, 0], [0, 0, 0, 0]])
def test_a_completion_without_tokens_has_no_reward_and_breaks_no_baseline(name, lengths):
    rewards = rewards_of([1.0, 0.0, 1.0, 1.0], lengths, 2)
    rewards.greedy = torch.zeros(2)
    if AXES["baseline"][name].needs_process_rewards:
        pytest.skip("steps end on tokens")
    advantages, _ = advantages_and_returns(algorithm(baseline=name), rewards, None)
    assert torch.isfinite(advantages).all()
    assert torch.equal(advantages[~rewards.mask], torch.zeros_like(advantages[~rewards.mask]))


@pytest.mark.parametrize("name", AXES["aggregate"])
@pytest.mark.parametrize("group", [1, 2])
def test_completions_without_tokens_and_groups_of_one_give_finite_weights(name, group):
    mask = torch.tensor([[False, False], [False, False], [True, False], [True, True]])
    weights = AXES["aggregate"][name](mask, 2, group)
    assert torch.isfinite(weights).all()
    assert (weights[~mask] == 0).all()
    if group == 1 and name == "by_prompt":
        assert torch.equal(weights, AXES["aggregate"]["sequences"](mask, 2))


@pytest.mark.parametrize("name", AXES["objective"])
def test_a_completion_without_tokens_has_no_gradient(name):
    method, mask = algorithm(objective=name), torch.tensor([[False, False], [True, True]])
    logprobs = torch.full((2, 2), -1.0, requires_grad=True)
    tokens = Tokens(logprobs, torch.full((2, 2), -1.5), torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), mask)
    policy_loss(method, tokens, method.aggregate(mask, 2)).loss.backward()
    assert torch.isfinite(logprobs.grad).all()
    assert (logprobs.grad[0] == 0).all()


@pytest.mark.parametrize("name", AXES["advantage"])
@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), -float("inf")])
def test_no_padding_reaches_an_advantage_or_a_target(name, rubbish):
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True], [False] * 3])
    rewards, values = torch.arange(24.0).view(2, 4, 3)
    option, found = AXES["advantage"][name], []
    for padding in (0.0, rubbish):
        spoilt = (torch.where(mask, each, padding) for each in (rewards, values))
        found.append([each for each in option(*spoilt, mask) if each is not None])
    for clean, mine in zip(*found, strict=True):
        assert torch.equal(clean, mine)


def test_the_length_adaptive_lambda_is_that_of_each_completion():
    """α 0.5: λ is 0 for two tokens, ½ for four, and the target is the return."""
    option = AXES["advantage"]["gae_length"]
    own = type(option)(alpha=0.5)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    rewards = torch.tensor([[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 8.0]])
    advantages, targets = own(rewards, torch.zeros(2, 4), mask)
    assert advantages.tolist() == [[1, 2, 0, 0], [1, 2, 4, 8]]
    assert targets.tolist() == [[3, 2, 0, 0], [8, 8, 8, 8]]


def test_clip_cov_draws_its_share_of_the_tokens_in_the_range_by_the_generator():
    option = type(AXES["objective"]["clip_cov"])(share=0.05, least=0.1)
    draw = torch.Generator().manual_seed(0)
    advantages, behaviour = torch.randn(10, 10, generator=draw), torch.randn(10, 10, generator=draw)
    mask = torch.arange(10) < torch.arange(1, 11)[:, None]  # 55 tokens, of which 5 % are two
    covariance = (advantages - advantages[mask].mean()) * (behaviour - behaviour[mask].mean())

    def chosen(seed):
        return option.choose(advantages, behaviour, mask, torch.Generator().manual_seed(seed))

    assert torch.equal(chosen(1), chosen(1))
    every = torch.stack([chosen(seed) for seed in range(40)])
    assert (every.sum((1, 2)) == 2).all()
    assert torch.equal(every.any(0), mask & (covariance >= 0.1) & (covariance <= 5)), "every candidate has its turn"


def test_kl_cov_chooses_the_tokens_of_the_largest_covariance_and_at_least_one():
    option = type(AXES["objective"]["kl_cov"])(share=0.5)
    advantages, behaviour = torch.tensor([[1.0, 1.0, -1.0, -1.0]]), torch.tensor([[-1.0, -3.0, -1.0, -3.0]])
    mask, draws = torch.ones(1, 4, dtype=torch.bool), torch.Generator()
    assert option.choose(advantages, behaviour, mask, draws).tolist() == [[True, False, False, True]]
    assert AXES["objective"]["kl_cov"].choose(advantages, behaviour, mask, draws).sum() == 1
    assert option.choose(advantages, behaviour, ~mask, draws).sum() == 0


def test_an_adaptive_entropy_coefficient_rises_below_its_target_and_falls_above_it_to_zero():
    rule, coefficient, seen = AXES["entropy"]["adaptive"], AXES["entropy"]["adaptive"].coefficient, []
    for nats in [0.1, 0.15, 0.2, 0.3, 0.3, 0.1]:
        seen.append((rule.applied(coefficient, nats), coefficient))
        coefficient = rule.adapt(coefficient, nats)
    assert [c for _, c in seen] == pytest.approx([0, 0.005, 0.01, 0.005, 0, 0])
    assert [used for used, _ in seen] == pytest.approx([0, 0.005, 0.01, 0, 0, 0])
    assert coefficient == pytest.approx(0.005)
