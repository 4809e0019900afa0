"""Every shipped method against an independent computation, finite differences, and exact enumeration."""

import itertools

import pytest
import torch

from bakeoff.algorithm.loss import Betas, advantages_and_returns, place, policy_loss, value_loss, with_kl_reward
from bakeoff.batch import micro_batches
from tests.conftest import compose

from . import reference

METHODS = ["ppo", "ppo_kl", "grpo"]
LENGTHS = [4, 2, 5, 1, 3, 5, 2, 4]
GROUP = 4
SCORES = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]  # the second group has no spread


@pytest.fixture(scope="module")
def fixed():
    """Fixed tensors [8, 5] in float64 under a ragged mask; padding holds rubbish."""
    draw = torch.Generator().manual_seed(5)
    mask = torch.arange(5) < torch.tensor(LENGTHS)[:, None]

    def logprobs():
        return torch.where(mask, -2 * torch.rand(8, 5, generator=draw, dtype=torch.float64), 12.0)

    current, old, ref = logprobs(), logprobs(), logprobs()
    values = torch.randn(8, 5, generator=draw, dtype=torch.float64)
    scores = torch.tensor(SCORES, dtype=torch.float64)
    return mask, current, old, ref, values, scores


def rows(x, mask):
    return [row[keep].tolist() for row, keep in zip(x, mask, strict=True)]


def prepared(name, fixed):
    algorithm = compose(f"algorithm={name}").algorithm
    mask, _, old, ref, values, scores = fixed
    rewards = with_kl_reward(algorithm, place(scores, mask, GROUP), algorithm.kl_to_reference.beta, old, ref)
    has_values = values if algorithm.critic.exists else None
    return algorithm, rewards, *advantages_and_returns(algorithm, rewards, has_values)


def loss_of(algorithm, logprobs, fixed, advantages, betas=None):
    mask, _, old, ref, _, _ = fixed
    weights = algorithm.aggregate(mask, 5)
    return policy_loss(algorithm, logprobs, old, advantages, mask, weights, ref, betas).loss


@pytest.mark.parametrize("name", ["ppo", "ppo_kl"])
def test_ppo_rewards_advantages_and_returns(name, fixed):
    algorithm, rewards, advantages, returns = prepared(name, fixed)
    mask, _, old, ref, values, _ = fixed
    beta = algorithm.kl_to_reference.beta
    raw, targets = [], []
    for index, length in enumerate(LENGTHS):
        row = [-beta * (old[index, t] - ref[index, t]).item() for t in range(length)]
        row[-1] += SCORES[index]
        assert rewards.tokens[index, :length].tolist() == pytest.approx(row, abs=1e-12)
        value = values[index, :length].tolist()
        raw.append(reference.gae_double_sum(row, value, 1.0, 0.95))
        targets.append([a + v for a, v in zip(raw[-1], value, strict=True)])
    for got, expected in zip(rows(advantages, mask), reference.whiten(raw), strict=True):
        assert got == pytest.approx(expected, abs=1e-9)
    for got, expected in zip(rows(returns, mask), targets, strict=True):
        assert got == pytest.approx(expected, abs=1e-9)


def test_ppo_loss(fixed):
    algorithm, _, advantages, _ = prepared("ppo", fixed)
    mask, current, old, *_ = fixed
    expected = reference.ppo(rows(current, mask), rows(old, mask), rows(advantages, mask))
    assert loss_of(algorithm, current, fixed, advantages).item() == pytest.approx(expected, abs=1e-9)


def test_ppo_kl_loss(fixed):
    algorithm, _, advantages, _ = prepared("ppo_kl", fixed)
    mask, current, old, *_ = fixed
    expected = reference.ppo_kl(rows(current, mask), rows(old, mask), rows(advantages, mask), beta=0.7)
    got = loss_of(algorithm, current, fixed, advantages, Betas(reference=0.3, behaviour=0.7))
    assert got.item() == pytest.approx(expected, abs=1e-9)


def test_grpo_loss(fixed):
    algorithm, _, advantages, returns = prepared("grpo", fixed)
    mask, current, old, ref, *_ = fixed
    beta = algorithm.kl_to_reference.beta
    expected = reference.grpo(rows(current, mask), rows(old, mask), rows(ref, mask), SCORES, GROUP, beta)
    assert loss_of(algorithm, current, fixed, advantages).item() == pytest.approx(expected, abs=1e-9)
    assert returns is None
    assert advantages[4:].abs().max() == 0, "a group without spread teaches nothing"


def test_grpo_advantages_by_hand(fixed):
    """Scores 1, 0, 0, 1: mean ½, std (ddof 1) √⅓ = 0.57735."""
    _, _, advantages, _ = prepared("grpo", fixed)
    expected = 0.5 / (3**-0.5 + 1e-4)
    assert advantages[0, :4].tolist() == pytest.approx([expected] * 4, abs=1e-12)
    assert advantages[1, :2].tolist() == pytest.approx([-expected] * 2, abs=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_gradient_against_finite_differences(name, fixed):
    algorithm, _, advantages, _ = prepared(name, fixed)
    logprobs = torch.where(fixed[0], fixed[1], 0.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss_of(algorithm, x, fixed, advantages), logprobs, atol=1e-7)


def test_value_gradient_against_finite_differences(fixed):
    mask, _, _, _, values, _ = fixed
    critic = compose("algorithm=ppo", "algorithm.critic.value_clip=0.2").algorithm.critic
    returns, old = values.flip(0), values + 0.15 * values.flip(1)
    inputs = values.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: value_loss(critic, v, old, returns, mask, mask.sum()), inputs)


def test_value_loss_by_hand():
    """V 1, R 3: ½·4 = 2; clipped at 0.2 around the old value 0: V may only reach 0.2: ½·2.8² = 3.92."""
    one = torch.ones(1, 1)
    plain = compose("algorithm=ppo").algorithm.critic
    clipped = compose("algorithm=ppo", "algorithm.critic.value_clip=0.2").algorithm.critic
    arguments = (one, 0 * one, 3 * one, one.bool(), one.sum())
    assert value_loss(plain, *arguments).item() == pytest.approx(2.0)
    assert value_loss(clipped, *arguments).item() == pytest.approx(3.92)


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_add_up_to_the_minibatch(name, fixed):
    algorithm, _, advantages, _ = prepared(name, fixed)
    mask, current, old, ref, *_ = fixed
    weights = algorithm.aggregate(mask, 5)
    gradients = []
    for size in (0, 1, 3):
        logprobs = current.clone().requires_grad_()
        for part in micro_batches(8, size):
            arguments = (logprobs[part], old[part], advantages[part], mask[part], weights[part], ref[part])
            policy_loss(algorithm, *arguments).loss.backward()
        gradients.append(logprobs.grad)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-12)
    assert torch.allclose(gradients[0], gradients[2], atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_masked_positions_never_matter(name, fixed):
    mask, current, old, ref, values, scores = fixed
    losses = []
    for rubbish in (0.0, -300.0, float("nan")):
        changed = (mask, *(torch.where(mask, x, rubbish) for x in (current, old, ref)), values, scores)
        if rubbish == rubbish:
            changed = (*changed[:4], torch.where(mask, values, rubbish), scores)
        algorithm, _, advantages, _ = prepared(name, changed)
        losses.append(loss_of(algorithm, changed[1], changed, advantages).item())
    assert losses[1] == pytest.approx(losses[0], abs=1e-12)
    assert losses[2] == pytest.approx(losses[0], abs=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_permuting_groups_changes_nothing(name, fixed):
    order = torch.tensor([4, 5, 6, 7, 0, 1, 2, 3])
    permuted = tuple(x[order] for x in fixed)
    losses = [loss_of(a, f[1], f, adv).item() for f in (fixed, permuted) for a, _, adv, _ in [prepared(name, f)]]
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_on_policy_ratio_is_one_and_nothing_is_clipped(name, fixed):
    algorithm, _, advantages, _ = prepared(name, fixed)
    mask, _, old, ref, *_ = fixed
    result = policy_loss(algorithm, old, old, advantages, mask, algorithm.aggregate(mask, 5), ref)
    assert (result.ratio == 1).all()
    assert not result.clipped.any()


def test_clip_by_hand():
    """Ratios 1.5 and 0.5: clipped where the advantage pushes further out, not where it pulls back."""
    objective = compose("algorithm=ppo").algorithm.objective
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5])
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert objective(ratio, advantages).tolist() == pytest.approx([1.2, -1.5, 0.5, -0.8])
    assert objective.clipped(ratio, advantages).tolist() == [True, False, False, True]


# Exact enumeration: a policy over 3 tokens and sequences of 2 tokens, one logit table for each prefix.

TOKENS, LENGTH = 3, 2
SEQUENCES = list(itertools.product(range(TOKENS), repeat=LENGTH))
REWARD = {s: float(s[0] == 1) + 0.5 * float(s == (2, 0)) for s in SEQUENCES}


def sequence_logprobs(table, sequences):
    """[N, 2] log-probs of sequences [N, 2] under a table [1 + 3, 3]: row 0 for the first token, 1 + a after a."""
    logs = table.log_softmax(-1)
    return torch.stack([logs[0, sequences[:, 0]], logs[1 + sequences[:, 0], sequences[:, 1]]], 1)


@pytest.mark.parametrize("name", ["ppo", "ppo_kl", "grpo"])
def test_gradient_estimate_covers_the_exact_policy_gradient(name):
    """On-policy and without KL, each method's mean gradient is the exact one up to a positive factor.

    The scale of a method (whitening, group std) is a random factor, so it is switched off here; GRPO's group
    mean includes the sample itself, which shrinks the expectation by exactly (G − 1)/G.
    """
    overrides = ["algorithm/scale=none", "algorithm/kl_to_reference=none", "algorithm/kl_to_behaviour=none"]
    extra = ["algorithm.advantage.lam=1.0"] if name != "grpo" else []
    algorithm = compose(f"algorithm={name}", *overrides, *extra, "tuned=none").algorithm
    torch.manual_seed(0)
    table = torch.randn(1 + TOKENS, TOKENS, dtype=torch.float64, requires_grad=True)
    everything = torch.tensor(SEQUENCES)
    reward = torch.tensor([REWARD[s] for s in SEQUENCES], dtype=torch.float64)
    (exact,) = torch.autograd.grad((sequence_logprobs(table, everything).sum(1).exp() * reward).sum(), table)

    group, batches, estimates = 4, 400, []
    probabilities = sequence_logprobs(table, everything).sum(1).exp().detach()
    values = 0.3 * torch.ones(group * 8, LENGTH, dtype=torch.float64)  # any values: at λ = 1 they are a baseline
    mask = torch.ones(group * 8, LENGTH, dtype=torch.bool)
    for _ in range(batches):
        drawn = torch.multinomial(probabilities, group * 8, replacement=True)
        logprobs = sequence_logprobs(table, everything[drawn])
        rewards = place(reward[drawn], mask, group)
        advantages, _ = advantages_and_returns(algorithm, rewards, values if algorithm.critic.exists else None)
        weights = algorithm.aggregate(mask, LENGTH)
        loss = policy_loss(algorithm, logprobs, logprobs.detach(), advantages, mask, weights).loss
        estimates.append(torch.autograd.grad(-loss, table)[0])
    estimates = torch.stack(estimates) * LENGTH  # both aggregations average over the two tokens
    if name == "grpo":
        estimates = estimates * group / (group - 1)
    error = estimates.std(0) / batches**0.5
    distance = (estimates.mean(0) - exact).abs() / error.clamp(min=1e-12)
    assert distance.max() < 4, f"{distance.max():.1f} standard errors off"
    assert exact.abs().max() > 10 * error.max(), "the test must be able to tell the gradient from zero"
