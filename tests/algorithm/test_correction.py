"""Corrections against their definitions, and against exact expectations under the policy."""

import itertools
import math

import pytest
import torch

from bakeoff.algorithm import AXES
from bakeoff.algorithm.correction import Gate, Level, Mask, Truncate
from tests.conftest import compose, loop_of, update_of

EVERY = AXES["correction"]
CORRECTING = {name: option for name, option in EVERY.items() if option.corrects}
FEW = [
    *("tuned=none", "algorithm=grpo", "batch.prompts=4", "batch.group_size=4", "sft.steps=0", "task.heldout=2"),
    *("task.digits=2", "task.max_new_tokens=4", "algorithm.optimizer.lr=0.01", "reward.distortion.noise=1"),
]


@pytest.fixture
def rows():
    """log π_old, log π_sampler and the mask of five completions of up to six tokens; one has no token."""
    draws = torch.Generator().manual_seed(0)
    behaviour, sampler = -3 * torch.rand(2, 5, 6, generator=draws, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 0, 5])[:, None]
    return behaviour, sampler, mask


def definition(option, behaviour, sampler):
    """The weights of one completion from lists of its log-probs, with one rule at a time."""
    token = [math.exp(b - s) for b, s in zip(behaviour, sampler, strict=True)]
    count, product = len(token), math.prod(token)
    shared = {Level.token: token, Level.sequence: [product] * count}
    ratio = shared.get(option.level) or [product ** (1 / count)] * count
    if isinstance(option, Truncate):
        return [min(c, option.cap) for c in ratio]
    if isinstance(option, Mask):
        return [c if option.least <= c <= option.most else 0.0 for c in ratio]
    near = [abs(math.exp(b) - math.exp(s)) <= option.delta for b, s in zip(behaviour, sampler, strict=True)]
    return [min(c, option.cap) if kept else 0.0 for c, kept in zip(ratio, near, strict=True)]


@pytest.mark.parametrize("level", Level)
@pytest.mark.parametrize("option", [Truncate(cap=1.5), Mask(least=0.5, most=1.5), Gate(delta=0.2, cap=1.5)], ids=str)
def test_weights_are_those_of_the_definition(option, level, rows):
    behaviour, sampler, mask = rows
    option.level = level
    weights, bounded = option(*rows)
    plain = torch.where(mask, Truncate(level=level, cap=1e9)(*rows).weight, 1.0)
    for row in range(len(mask)):
        real = mask[row]
        expected = definition(option, behaviour[row][real].tolist(), sampler[row][real].tolist()) if real.any() else []
        assert weights[row][real].tolist() == pytest.approx(expected, abs=1e-12)
    assert torch.equal(bounded, (weights - plain).abs() > 1e-12)
    assert (weights[~mask] == 1).all()


@pytest.mark.parametrize("option", CORRECTING.values(), ids=CORRECTING)
def test_a_sampler_that_is_the_policy_has_weights_of_one(option, rows):
    behaviour, _, mask = rows
    weights, bounded = option(behaviour, behaviour, mask)
    assert torch.allclose(weights, torch.ones_like(behaviour))
    assert not bounded.any()


@pytest.mark.parametrize("option", CORRECTING.values(), ids=CORRECTING)
@pytest.mark.parametrize("gap", [-1e4, 1e4], ids=["never sampled", "never learned"])
def test_weights_are_finite_whatever_the_distance_is(option, gap, rows):
    behaviour, _, mask = rows
    assert torch.isfinite(option(behaviour, behaviour + gap, mask).weight).all()


def test_product_weights_give_expectations_of_the_policy_without_bias():
    """Two tokens of three symbols: all nine completions are enumerated, so that the expectation is exact."""
    policy, sampler = (torch.softmax(torch.tensor(x, dtype=torch.float64), 0) for x in ([1, 0, -1], [0, 0.5, 0]))
    every = torch.tensor(list(itertools.product(range(3), repeat=2)))
    mask, value = torch.ones(9, 2, dtype=torch.bool), (every[:, 0] * 3 + every[:, 1]).double() ** 2
    weights = Truncate(level=Level.sequence, cap=1e9)(policy.log()[every], sampler.log()[every], mask).weight[:, 0]
    expected = (policy[every].prod(1) * value).sum()
    assert (sampler[every].prod(1) * weights * value).sum().item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_an_exact_engine_learns_alike_with_every_correction(name):
    losses = [
        update_of(loop_of(compose(*FEW, f"algorithm/correction={each}")))["policy/loss"] for each in ("none", name)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("sampler", [["lag=1"], ["engine=rounded"], ["sampling.top_p=0.5"]], ids=str)
def test_a_mismatch_is_measured_and_its_weights_reach_the_loss(sampler):
    def second(correction):
        loop = loop_of(compose(*FEW, *sampler, f"algorithm/correction={correction}"))
        update_of(loop)
        return update_of(loop)

    strict = second("gate")
    loose = second("truncate")
    assert loose["rollout/sampler_mismatch"] > 1e-4
    assert loose["rollout/sampler_k3"] > 0
    assert loose["correction/mean"] != 1
    assert strict["policy/loss"] != loose["policy/loss"] or strict["correction/mean"] == loose["correction/mean"]


def test_the_sampler_is_as_old_as_the_lag():
    """Where nothing but the first update moves the policy, the mismatch lasts for `lag` updates after it."""
    loop, found = loop_of(compose(*FEW, "lag=2", "algorithm/correction=truncate")), []
    for _ in range(5):
        found.append(update_of(loop)["rollout/sampler_mismatch"])
        loop.learner.algorithm.optimizer.lr = 0.0
    assert [each > 1e-4 for each in found] == [False, True, True, False, False]
