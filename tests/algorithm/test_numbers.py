"""Extreme log-ratios, groups and batches: losses and gradients stay finite, whatever the options of a method."""

import itertools

import pytest
import torch

from bakeoff.algorithm import AXES, Algorithm
from bakeoff.algorithm.kl import InRewardAdaptive
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
