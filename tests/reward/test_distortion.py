import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bakeoff.reward.distortion import Distortion

PROMPTS = [f"{number}=" for number in range(500) for _ in range(4)]


@pytest.fixture(autouse=True)
def _same_draws():
    torch.manual_seed(1)


def scores():
    return (torch.arange(len(PROMPTS)) % 3 == 0).float()


def test_without_a_distortion_a_score_stays_as_it_is_and_nothing_is_drawn():
    before = torch.get_rng_state()
    assert Distortion()(scores(), PROMPTS) is not None
    assert torch.equal(Distortion()(scores(), PROMPTS), scores())
    assert torch.equal(torch.get_rng_state(), before)


@given(offset=st.floats(-10, 10), level=st.floats(0, 10), scale=st.floats(1, 20))
def test_level_and_factor_belong_to_the_prompt_whatever_its_completions_score(offset, level, scale):
    distortion = Distortion(offset=offset, prompt_offset=level, prompt_scale=scale)
    right, wrong = (distortion(torch.full((len(PROMPTS),), each), PROMPTS) for each in (1.0, 0.0))
    factor, base = (right - wrong).view(-1, 4), (wrong - offset).view(-1, 4)
    assert torch.equal(base, base[:, :1].expand(-1, 4))
    torch.testing.assert_close(factor, factor[:, :1].expand(-1, 4))
    assert base.min() >= -1e-4
    assert base.max() <= level + 1e-4
    assert (factor.log().abs() <= math.log(scale) + 1e-3).all()


def test_levels_and_factors_spread_over_their_range():
    wrong = Distortion(prompt_offset=4.0)(torch.zeros(len(PROMPTS)), PROMPTS)
    right = Distortion(prompt_scale=10.0)(torch.ones(len(PROMPTS)), PROMPTS)
    assert abs(wrong.mean() - 2) < 0.2
    assert wrong.max() - wrong.min() > 3.9
    assert abs(right.log10().mean()) < 0.1
    assert right.max() / right.min() > 90


@pytest.mark.parametrize("flips", [0.0, 0.2, 0.5, 1.0])
def test_a_share_of_the_verdicts_is_exchanged(flips):
    changed = (Distortion(flips=flips)(scores(), PROMPTS) != scores()).float().mean()
    assert abs(changed - flips) < 4 * math.sqrt(0.25 / len(PROMPTS))


def test_noise_has_its_deviation_and_follows_the_generator():
    once, again = (Distortion(noise=2.0)(scores(), PROMPTS) for _ in range(2))
    assert abs((once - scores()).std() - 2) < 0.1
    assert not torch.equal(once, again)
    torch.manual_seed(1)
    assert torch.equal(Distortion(noise=2.0)(scores(), PROMPTS), once)
