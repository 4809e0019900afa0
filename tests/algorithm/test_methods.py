"""Every shipped method against an independent reference, finite differences and exact enumeration."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bakeoff.algorithm import AXES
from bakeoff.algorithm import ratio as ratios
from bakeoff.algorithm.kl import estimate_kl
from bakeoff.algorithm.loss import advantages_and_returns, place_scores, policy_loss, value_loss, with_kl_reward
from bakeoff.batch import StepRewards, Tokens
from bakeoff.learner.experience import explained_variance
from bakeoff.paths import CONF
from bakeoff.rows import select
from tests.conftest import compose

from . import reference

METHODS = sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml"))
LENGTHS = [4, 2, 5, 1, 3, 5, 2, 4]
WIDTH, GROUP = 5, 4
VALUES = {"clip_cov": ["algorithm.objective.share=1", "algorithm.objective.least=0.1"]}  # no draw decides what it drops
SCORES = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]  # all scores of the second group are equal
GREEDY = [1.0, 0.0]
STEPS = [
    [(0, 0.5), (3, 0.25)], [(1, 0.0), (1, 0.5)], [(0, 0.5), (2, 0.5), (4, 0.0)], [(0, 1.0)],
    [], [(1, 0.25), (4, 0.25)], [(1, 0.25)], [(3, 0.25)],
]  # fmt: skip


@pytest.fixture(scope="module")
def fixed():
    """Tensors [8, 5] in float64 under a ragged mask; padding holds arbitrary values."""
    draw = torch.Generator().manual_seed(5)
    mask = torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]

    def logprobs():
        return torch.where(mask, -2 * torch.rand(8, WIDTH, generator=draw, dtype=torch.float64), 12.0)

    current, old, ref = logprobs(), logprobs(), logprobs()
    values = torch.randn(8, WIDTH, generator=draw, dtype=torch.float64)
    found = [(row, token, score) for row, steps in enumerate(STEPS) for token, score in steps]
    row, token, score = zip(*found, strict=True)
    return {
        "mask": mask,
        "current": current,
        "old": old,
        "ref": ref,
        "values": values,
        "entropy": torch.where(mask, torch.rand(8, WIDTH, generator=draw, dtype=torch.float64), 7.0),
        "scores": torch.tensor(SCORES, dtype=torch.float64),
        "greedy": torch.tensor(GREEDY, dtype=torch.float64),
        "steps": StepRewards(torch.tensor(row), torch.tensor(token), torch.tensor(score, dtype=torch.float64), 8),
    }


def rows(x, mask):
    return [row[keep].tolist() for row, keep in zip(x, mask, strict=True)]


def case(fixed):
    """The same numbers for the independent reference."""
    mask = fixed["mask"]
    return reference.Case(
        logprobs=rows(fixed["current"], mask),
        old=rows(fixed["old"], mask),
        reference=rows(fixed["ref"], mask),
        values=rows(fixed["values"], mask),
        scores=fixed["scores"].tolist(),
        greedy=GREEDY,
        steps=STEPS,
        group=GROUP,
        budget=WIDTH,
        entropy=rows(fixed["entropy"], mask),
    )


def prepared(name, fixed, *overrides):
    """The method, its advantages and its value targets, computed by the functions that a run calls."""
    algorithm = compose(f"algorithm={name}", "tuned=none", *VALUES.get(name, ()), *overrides).algorithm
    mask = fixed["mask"]
    outcome = fixed["scores"] + algorithm.shaping(mask.sum(1), WIDTH)
    by_steps = (0 * outcome, mask, GROUP, fixed["steps"])
    whole = (outcome, mask, GROUP, None, fixed["greedy"])
    rewards = place_scores(*(by_steps if algorithm.baseline.needs_process_rewards else whole))
    rewards = with_kl_reward(algorithm, rewards, algorithm.kl_to_reference.beta, fixed["old"], fixed["ref"])
    values = fixed["values"] if algorithm.critic.exists else None
    return algorithm, *advantages_and_returns(algorithm, rewards, values)


def loss_of(algorithm, logprobs, fixed, advantages):
    weights = algorithm.aggregate(fixed["mask"], WIDTH, GROUP)
    return policy_loss(algorithm, tokens_for(algorithm, logprobs, fixed, advantages), weights, fixed["ref"]).loss


def tokens_for(algorithm, logprobs, fixed, advantages):
    """Tokens with all that the method reads, as an update makes them."""
    old, mask = fixed["old"], fixed["mask"]
    chosen = algorithm.objective.choose(advantages, old, mask, torch.Generator())
    entropy = fixed["entropy"] if algorithm.entropy.needs_entropy else None
    return Tokens(logprobs, old, advantages, mask, chosen=chosen, policy_entropy=entropy)


@pytest.mark.parametrize("name", METHODS)
def test_loss_gradient_and_targets_are_those_of_the_papers(name, fixed):
    loss, gradient, targets = reference.METHODS[name](case(fixed))
    algorithm, advantages, returns = prepared(name, fixed)
    logprobs = fixed["current"].clone().requires_grad_()
    got = loss_of(algorithm, logprobs, fixed, advantages)
    got.backward()
    mask = fixed["mask"]
    assert got.item() == pytest.approx(loss, abs=1e-9)
    for mine, expected in zip(rows(logprobs.grad, mask), gradient, strict=True):
        assert mine == pytest.approx(expected, abs=1e-9)
    assert logprobs.grad[~mask].abs().max() == 0
    assert max(abs(x) for row in gradient for x in row) > 1e-3, "a gradient of zero tests nothing"
    if targets is None:
        assert returns is None
    else:
        for mine, expected in zip(rows(returns, mask), targets, strict=True):
            assert mine == pytest.approx(expected, abs=1e-9)


def test_grpo_normalises_scores_by_the_group(fixed):
    """Scores 1, 0, 0, 1: mean ½, std (ddof 1) √⅓ = 0.57735. Scores of the second group are equal: no advantage."""
    _, advantages, _ = prepared("grpo", fixed)
    expected = 0.5 / (3**-0.5 + 1e-4)
    assert advantages[0, :4].tolist() == pytest.approx([expected] * 4, abs=1e-12)
    assert advantages[1, :2].tolist() == pytest.approx([-expected] * 2, abs=1e-12)
    assert advantages[4:].abs().max() == 0


def test_a_process_advantage_is_the_sum_of_the_steps_that_end_at_or_after_the_token(fixed):
    """The second group's step rewards are all ¼: no advantage. In the first group they differ."""
    _, advantages, _ = prepared("grpo_process", fixed)
    assert advantages[4:].abs().max() == 0
    every = [0.5, 0.25, 0.0, 0.5, 0.5, 0.5, 0.0, 1.0]
    deviation = torch.tensor(every).double().std().item() + 1e-4
    late = (0.25 - sum(every) / 8) / deviation
    assert advantages[0, 1:4].tolist() == pytest.approx([late] * 3, abs=1e-9)
    assert advantages[0, 0].item() == pytest.approx(late + (0.5 - sum(every) / 8) / deviation, abs=1e-9)


def test_an_outcome_method_scores_a_completion_by_the_sum_of_its_steps(fixed):
    algorithm = compose("algorithm=grpo").algorithm
    mask, steps = fixed["mask"], fixed["steps"]
    by_steps = place_scores(0 * fixed["scores"], mask, GROUP, steps)
    by_sum = place_scores(steps.on_tokens(steps.score, mask).sum(1), mask, GROUP)
    for x, y in zip(*(advantages_and_returns(algorithm, r, None)[:1] for r in (by_steps, by_sum)), strict=True):
        assert torch.allclose(x, y, atol=1e-12)


def test_gae_rewards_a_step_on_the_token_that_ends_it(fixed):
    algorithm = compose("algorithm=ppo", "algorithm/scale=none", "tuned=none").algorithm
    steps = fixed["steps"]
    rewards = place_scores(0 * fixed["scores"], fixed["mask"], GROUP, steps)
    on_tokens = steps.on_tokens(steps.score, fixed["mask"])
    advantages, _ = advantages_and_returns(algorithm, rewards, fixed["values"])
    for row, length in enumerate(LENGTHS):
        expected = reference.gae_double_sum(
            on_tokens[row, :length].tolist(), fixed["values"][row, :length].tolist(), 1.0, 0.95
        )
        assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-9)


# Weights of CISPO and DPPO are constants by definition: their gradients are not the derivatives of their losses.
@pytest.mark.parametrize("name", sorted(set(METHODS) - {"cispo", "dppo", "by_prompt"}))
def test_the_gradient_of_the_loss_is_that_of_finite_differences(name, fixed):
    algorithm, advantages, _ = prepared(name, fixed)
    logprobs = torch.where(fixed["mask"], fixed["current"], 0.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss_of(algorithm, x, fixed, advantages), logprobs, atol=1e-7)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("corrected", ["true", "false"])
def test_the_gradient_of_every_kl_in_the_loss_is_that_of_finite_differences(estimator, corrected, fixed):
    values = [
        f"algorithm.kl_to_reference.estimator={estimator}",
        f"algorithm.kl_to_reference.ratio_corrected={corrected}",
    ]
    algorithm, advantages, _ = prepared("grpo", fixed, *values)
    logprobs = torch.where(fixed["mask"], fixed["current"], 0.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss_of(algorithm, x, fixed, advantages), logprobs, atol=1e-7)


def test_the_gradient_of_the_value_loss_is_that_of_finite_differences(fixed):
    mask, values = fixed["mask"], fixed["values"]
    critic = compose("algorithm=ppo", "algorithm.critic.value_clip=0.2").algorithm.critic
    returns, old = values.flip(0), values + 0.15 * values.flip(1)
    inputs = values.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: value_loss(critic, v, old, returns, mask, mask.sum()).value_loss, inputs)


def test_the_value_loss_takes_the_larger_of_clipped_and_unclipped():
    """V = 1 and R = 3: ½·2² = 2. Clipped at 0.2 around the old value of 0, V is 0.2: ½·2.8² = 3.92."""
    one = torch.ones(1, 1)
    plain = compose("algorithm=ppo").algorithm.critic
    clipped = compose("algorithm=ppo", "algorithm.critic.value_clip=0.2").algorithm.critic
    arguments = (one, 0 * one, 3 * one, one.bool(), one.sum())
    assert value_loss(plain, *arguments).value_loss.item() == pytest.approx(2.0)
    assert value_loss(plain, *arguments).value_clip_fraction is None
    assert value_loss(clipped, *arguments).value_loss.item() == pytest.approx(3.92)


def test_the_value_clip_has_a_rate_of_the_tokens_on_which_it_stops_the_gradient():
    """Values that have moved past the clip towards the return, away from it, within it, and padding."""
    critic = compose("algorithm=ppo", "algorithm.critic.value_clip=0.2").algorithm.critic
    values = torch.tensor([[1.0, -1.0, 0.1, 5.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True, False]])
    found = value_loss(critic, values, torch.zeros(1, 4), torch.full((1, 4), 3.0), mask, mask.sum())
    found.value_loss.backward()
    assert found.value_clip_fraction.item() == pytest.approx(1 / 3)
    assert (values.grad[0] == 0).tolist() == [True, False, False, True]


@pytest.mark.parametrize("name", METHODS)
def test_gradients_of_micro_batches_sum_to_that_of_the_minibatch(name, fixed):
    algorithm, advantages, _ = prepared(name, fixed)
    weights = algorithm.aggregate(fixed["mask"], WIDTH, GROUP)
    gradients = []
    for size in (8, 1, 3):
        logprobs = fixed["current"].clone().requires_grad_()
        for part in (slice(at, at + size) for at in range(0, 8, size)):
            tokens = select(tokens_for(algorithm, logprobs, fixed, advantages), part)
            policy_loss(algorithm, tokens, weights[part], fixed["ref"][part]).loss.backward()
        gradients.append(logprobs.grad)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-12)
    assert torch.allclose(gradients[0], gradients[2], atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_padding_changes_no_loss(name, fixed):
    losses = []
    for rubbish in (0.0, -300.0, float("nan")):
        changed = fixed | {
            key: torch.where(fixed["mask"], fixed[key], rubbish) for key in ("current", "old", "ref", "entropy")
        }
        changed["values"] = torch.where(fixed["mask"], fixed["values"], rubbish)
        algorithm, advantages, _ = prepared(name, changed)
        losses.append(loss_of(algorithm, changed["current"], changed, advantages).item())
    assert losses[1] == pytest.approx(losses[0], abs=1e-12)
    assert losses[2] == pytest.approx(losses[0], abs=1e-12)


@pytest.mark.parametrize("name", METHODS)
@given(data=st.data())
@settings(deadline=None, max_examples=3)
def test_tokens_that_the_policy_did_not_write_change_no_loss_gradient_target_or_statistic(name, data, fixed):
    """The same numbers with an environment's tokens between them: they are read as if these were not there."""
    wide = 2 * WIDTH + 1
    columns = torch.tensor([sorted(data.draw(st.permutations(range(wide)))[:WIDTH]) for _ in LENGTHS])
    mask, steps = fixed["mask"], fixed["steps"]
    spread = fixed | {"mask": torch.zeros(8, wide, dtype=torch.bool).scatter(1, columns, mask)}
    for key, rubbish in (("current", -3.0), ("old", -300.0), ("ref", float("nan")), ("values", 40.0), ("entropy", 9.0)):
        spread[key] = torch.full((8, wide), rubbish, dtype=torch.float64).scatter(1, columns, fixed[key])
    spread["steps"] = replace(steps, token=columns[steps.row, steps.token])
    found = []
    for each in (fixed, spread):
        algorithm, advantages, returns = prepared(name, each)
        logprobs = each["current"].clone().requires_grad_()
        result = policy_loss(
            algorithm,
            tokens_for(algorithm, logprobs, each, advantages),
            algorithm.aggregate(each["mask"], WIDTH, GROUP),
            each["ref"],
        )
        result.loss.backward()
        tokens = [logprobs.grad, advantages, result.ratio, result.clipped.double()]
        scalars = [*vars(estimate_kl(each["old"], each["current"], each["mask"])).values(), result.loss.detach()]
        if returns is not None:
            tokens.append(returns)
            critic = (each["values"] + 1, each["values"], returns, each["mask"], each["mask"].sum())
            scalars += [
                value_loss(algorithm.critic, *critic).value_loss,
                explained_variance(each["values"], *critic[2:4]),
            ]
        assert logprobs.grad[~each["mask"]].abs().max() == 0
        found.append(([x[each["mask"]] for x in tokens], torch.stack(scalars)))
    (mine, scalars), (its, others) = found
    for one, other in zip(mine, its, strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    assert torch.allclose(scalars, others, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_groups_changes_no_loss(name, fixed):
    order = torch.tensor([4, 5, 6, 7, 0, 1, 2, 3])
    own = {"greedy": fixed["greedy"][[1, 0]], "steps": select(fixed["steps"], order)}
    permuted = {key: own[key] if key in own else x[order] for key, x in fixed.items()}
    losses = [loss_of(a, f["current"], f, adv).item() for f in (fixed, permuted) for a, adv, _ in [prepared(name, f)]]
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_on_policy_every_ratio_is_one_and_no_token_is_clipped(name, fixed):
    algorithm, advantages, _ = prepared(name, fixed)
    mask, old, ref = fixed["mask"], fixed["old"], fixed["ref"]
    weights = algorithm.aggregate(mask, WIDTH, GROUP)
    result = policy_loss(algorithm, Tokens(old, old, advantages, mask), weights, ref)
    assert (result.ratio == 1).all()
    assert not result.clipped.any()


def tokens_of(ratio, advantages):
    """Tokens of one completion with these ratios; the behaviour policy gives each token a probability of ½."""
    behaviour = torch.full_like(ratio, 0.5).log()
    return Tokens((ratio / 2).log()[None], behaviour[None], advantages[None], torch.ones(1, len(ratio)).bool())


def test_the_clip_binds_only_where_the_advantage_pushes_the_ratio_away_from_one():
    """Ratios of 1.5 and 0.5, each with an advantage of either sign."""
    objective = compose("algorithm=ppo").algorithm.objective
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5])
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    tokens = tokens_of(ratio, advantages)
    assert objective(ratio[None], tokens)[0].tolist() == pytest.approx([1.2, -1.5, 0.5, -0.8])
    assert objective.clipped(ratio[None], tokens)[0].tolist() == [True, False, False, True]


def test_total_variation_masks_by_the_change_of_a_probability_not_by_its_ratio():
    """From ½, 0.7 and 0.3 moved by 0.2 > δ, and 0.6 and 0.4 by 0.1. From 0.01, a ratio of 5 moved by only 0.04."""
    objective = AXES["objective"]["binary_tv"]
    ratio, advantages = torch.tensor([1.4, 1.4, 0.6, 0.6, 1.2, 0.8]), torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, -1.0])
    tokens = tokens_of(ratio, advantages)
    assert objective.clipped(ratio[None], tokens)[0].tolist() == [True, False, True, False, False, False]
    contributions = objective(ratio[None], tokens)[0]
    assert contributions[[0, 2]].tolist() == [0, 0]
    assert contributions[1].item() == pytest.approx(-1.4 * math.log(0.7))
    rare = Tokens(torch.tensor([[0.05]]).log(), torch.tensor([[0.01]]).log(), torch.ones(1, 1), torch.ones(1, 1).bool())
    assert not objective.clipped(torch.tensor([[5.0]]), rare).any()


def test_a_geometric_mean_clips_each_ratio_on_the_side_of_the_advantage():
    """Ratios of 2 (above e^0.4) and ½: with A = 2 the mean is √(e^0.4·½), with A = −2 it is √(2·e^−0.4)."""
    objective, ratio = AXES["objective"]["geometric_mean"], torch.tensor([2.0, 0.5])
    for sign, expected, clipped in (
        (1, (math.exp(0.4) / 2) ** 0.5, [True, False]),
        (-1, (2 * math.exp(-0.4)) ** 0.5, [False, True]),
    ):
        tokens = tokens_of(ratio, torch.full((2,), 2.0 * sign))
        assert objective(ratio[None], tokens)[0].tolist() == pytest.approx([2 * sign * expected] * 2)
        assert objective.clipped(ratio[None], tokens)[0].tolist() == clipped


def test_sequence_ratios_are_products_and_geometric_means_of_token_ratios():
    """Token ratios 2, 2, ½ and 3: products 2 and 3, geometric means 2^⅓ and 3."""
    logprobs = torch.tensor([[2.0, 2.0, 0.5], [3.0, 1.0, 1.0]]).log()
    mask = torch.tensor([[True, True, True], [True, False, False]])
    tokens = Tokens(logprobs, torch.zeros_like(logprobs), torch.zeros_like(logprobs), mask)
    assert ratios.SequenceRatio()(tokens)[:, 0].tolist() == pytest.approx([2, 3])
    assert ratios.SequenceMeanRatio()(tokens)[:, 0].tolist() == pytest.approx([2 ** (1 / 3), 3])


def test_a_ratio_above_the_cap_is_truncated_to_it():
    objective = compose(
        "algorithm=importance_sampling", "algorithm/objective=truncated_ratio", "tuned=none"
    ).algorithm.objective
    ratio, advantages = torch.tensor([0.5, 2.0, 7.0]), torch.tensor([1.0, -1.0, -1.0])
    tokens = tokens_of(ratio, advantages)
    assert objective(ratio[None], tokens)[0].tolist() == pytest.approx([0.5, -2, -2])
    assert objective.clipped(ratio[None], tokens)[0].tolist() == [False, False, True]


def test_overlong_shaping_falls_linearly_within_the_margin():
    """Budget 100, margin 20: no penalty up to 80 tokens, half of it at 90, all of it at 100."""
    shaping = compose("algorithm=dapo").algorithm.shaping
    assert shaping(torch.tensor([10, 80, 90, 100]), 100).tolist() == pytest.approx([0, 0, -0.25, -0.5])


# Exact enumeration: a policy over 3 tokens and sequences of 2 tokens, one logit table for each prefix.

TOKENS, LENGTH = 3, 2
SEQUENCES = list(itertools.product(range(TOKENS), repeat=LENGTH))
REWARD = {s: float(s[0] == 1) + 0.5 * float(s == (2, 0)) for s in SEQUENCES}


def sequence_logprobs(table, sequences):
    """[N, 2] log-probs of sequences [N, 2] under a table [1 + 3, 3]: row 0 for the first token, 1 + a after a."""
    logs = table.log_softmax(-1)
    return torch.stack([logs[0, sequences[:, 0]], logs[1 + sequences[:, 0], sequences[:, 1]]], 1)


# Expected estimate as a multiple of the exact gradient, for S sequences of T tokens in groups of G.
EXPECTED_SHARE = {
    "reinforce": lambda s, g, t: 1,
    "reinforce_baseline": lambda s, g, t: (s - 1) / s,  # the mean includes the sample itself
    "rloo": lambda s, g, t: 1,
    "remax": lambda s, g, t: 1,
    "importance_sampling": lambda s, g, t: (s - 1) / s / t,
    "ppo": lambda s, g, t: 1 / t,
    "ppo_kl": lambda s, g, t: 1 / t,
    "ppo_penalty": lambda s, g, t: 1 / t,
    "ppo_decoupled": lambda s, g, t: 1 / t,
    "trpo": lambda s, g, t: 1 / t,
    "reinforce_pp": lambda s, g, t: 1 / t,
    "grpo": lambda s, g, t: (g - 1) / g / t,
    "grpo_iterative": lambda s, g, t: (g - 1) / g / t,
    "dr_grpo": lambda s, g, t: (g - 1) / g / t,
    "dapo": lambda s, g, t: (g - 1) / g / t,
    "cispo": lambda s, g, t: (g - 1) / g / t,
    "gspo": lambda s, g, t: (g - 1) / g / t,
    "dppo": lambda s, g, t: (g - 1) / g / t,
    "gmpo": lambda s, g, t: (g - 1) / g / t,
    "lite_ppo": lambda s, g, t: (g - 1) / g / t,
    "reinforce_pp_baseline": lambda s, g, t: (g - 1) / g / t,
    "rgra": lambda s, g, t: (g - 1) / g / t,
    "sapo": lambda s, g, t: (g - 1) / g / t,
    "delta": lambda s, g, t: (g - 1) / g / t,
    "dual_clip": lambda s, g, t: 1 / t,
    "opo": lambda s, g, t: (g - 1) / g,
    "by_prompt": lambda s, g, t: (g - 1) / g / t,
    "opsm": lambda s, g, t: (g - 1) / g / t,
}


@pytest.mark.parametrize("name", EXPECTED_SHARE)
def test_the_mean_gradient_is_the_exact_policy_gradient_times_a_known_factor(name):
    """On policy and without KL, each method's mean gradient is the exact one times a positive factor.

    The scale of a method (whitening, group std) is a random factor, so it is disabled here; GRPO's group
    mean includes the sample itself, which shrinks the expectation by exactly (G − 1)/G.
    """
    overrides = ["algorithm/scale=none", "algorithm/kl_to_reference=none", "algorithm/kl_to_behaviour=none"]
    algorithm = compose(f"algorithm={name}", *overrides, "tuned=none").algorithm
    if algorithm.critic.exists:
        algorithm.advantage.lam = 1.0  # with λ = 1, values of any kind are a baseline
    table, exact = policy_and_gradient()
    estimates = gradient_estimates(algorithm, table, table)
    share = EXPECTED_SHARE[name](SAMPLED, 4, LENGTH)
    assert_covers(estimates / share, exact)


@pytest.mark.parametrize(("ratio", "aggregate"), [("sequence", "sequences"), ("token", "sums")])
def test_only_the_ratio_of_whole_completions_makes_samples_of_an_old_policy_unbiased(ratio, aggregate):
    """Weights by completion ratios give the exact gradient; weights by token ratios give a biased one."""
    choices = [f"algorithm/ratio={ratio}", f"algorithm/aggregate={aggregate}", "algorithm/baseline=none"]
    method = compose(
        "algorithm=importance_sampling", *choices, "algorithm/kl_to_reference=none", "tuned=none"
    ).algorithm
    table, exact = policy_and_gradient()
    stale = (table + torch.randn(table.shape, generator=torch.Generator().manual_seed(3)).double()).detach()
    estimates = gradient_estimates(method, table, stale, batches=2000)
    if ratio == "sequence":
        assert_covers(estimates, exact)
    else:
        error = estimates.std(0) / len(estimates) ** 0.5
        assert ((estimates.mean(0) - exact).abs() / error.clamp(min=1e-12)).max() > 4


SAMPLED = 32


def policy_and_gradient():
    """Random logits and the exact gradient of the expected reward under them."""
    torch.manual_seed(0)
    table = torch.randn(1 + TOKENS, TOKENS, dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([REWARD[s] for s in SEQUENCES], dtype=torch.float64)
    logprobs = sequence_logprobs(table, torch.tensor(SEQUENCES))
    (exact,) = torch.autograd.grad((logprobs.sum(1).exp() * reward).sum(), table)
    return table, exact


def gradient_estimates(algorithm, table, sampled_from, batches=400, group=4):
    """Gradient estimates, one for each of `batches` batches that the policy `sampled_from` generated."""
    everything = torch.tensor(SEQUENCES)
    reward = torch.tensor([REWARD[s] for s in SEQUENCES], dtype=torch.float64)
    probabilities = sequence_logprobs(sampled_from, everything).sum(1).exp().detach()
    values = 0.3 * torch.ones(SAMPLED, LENGTH, dtype=torch.float64)
    greedy = torch.full((SAMPLED // group,), 0.4, dtype=torch.float64)
    mask = torch.ones(SAMPLED, LENGTH, dtype=torch.bool)
    estimates = []
    for _ in range(batches):
        drawn = torch.multinomial(probabilities, SAMPLED, replacement=True)
        logprobs = sequence_logprobs(table, everything[drawn])
        behaviour = sequence_logprobs(sampled_from, everything[drawn]).detach()
        rewards = place_scores(reward[drawn], mask, group, greedy=greedy)
        advantages, _ = advantages_and_returns(algorithm, rewards, values if algorithm.critic.exists else None)
        weights = algorithm.aggregate(mask, LENGTH, group)
        loss = policy_loss(algorithm, Tokens(logprobs, behaviour, advantages, mask), weights).loss
        estimates.append(torch.autograd.grad(-loss, table)[0])
    return torch.stack(estimates)


def assert_covers(estimates, exact):
    error = estimates.std(0) / len(estimates) ** 0.5
    distance = (estimates.mean(0) - exact).abs() / error.clamp(min=1e-12)
    assert distance.max() < 4, f"{distance.max():.1f} standard errors off"
    assert exact.abs().max() > 10 * error.max(), "standard errors are too large for a test of the gradient"
