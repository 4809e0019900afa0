"""Rewards: weighted sums, TRL's signature, and one sentence that names the function which failed."""

import pytest
import torch

from bakeoff.batch import Example, Rollout, Sequences
from bakeoff.errors import UserError
from bakeoff.reward import Reward
from bakeoff.task.sort import Sort

SEEN = {}


def longer(prompts, completions, **columns):
    SEEN.update(prompts=prompts, completions=completions, **columns)
    return [float(len(text)) for text in completions]


def raises(**_):
    raise KeyError("weights")


def too_short(completions, **_):
    return [0.0] * (len(completions) - 1)


def not_a_number(completions, **_):
    return [0.0, float("nan"), *[0.0] * (len(completions) - 2)]


def wrong_type(completions, **_):
    return ["good"] * len(completions)


@pytest.fixture
def rollout():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]]).bool()
    ids = torch.arange(20).view(4, 5)
    return Rollout(
        examples=[Example("21=", "12", {"level": 1}), Example("3=", "3", {"level": 2})],
        prompts=["21=", "3="],
        completions=["12", "1", "33", ""],
        group_size=2,
        sequences=Sequences(ids, torch.ones(4, 5).bool(), mask),
        decode=lambda tokens: "x" * len(tokens),
        sampler_logprobs=torch.zeros(4, 3),
        entropy=torch.zeros(4, 3),
        ended=torch.tensor([True, True, False, True]),
    )


def test_weighted_sum_and_missing_eos(rollout):
    reward = Reward({"verifier": 2.0, f"{__name__}.longer": 0.5}, missing_eos_penalty=1.0)
    scores = reward(Sort(digits=2), rollout)
    assert scores.total.tolist() == [2 * 1 + 0.5 * 2, 0.5 * 1, 0.5 * 2 - 1.0, 0.0]
    assert scores.exact.tolist() == [True, False, False, False]
    assert scores.terms[f"{__name__}.longer"].tolist() == [2, 1, 2, 0]


def test_user_functions_get_what_trl_gives(rollout):
    Reward({f"{__name__}.longer": 1.0})(Sort(digits=2), rollout)
    assert SEEN["prompts"] == ["21=", "21=", "3=", "3="]
    assert SEEN["completions"] == ["12", "1", "33", ""]
    assert SEEN["level"] == [1, 1, 2, 2]
    assert SEEN["answer"] == ["12", "12", "3", "3"]
    assert SEEN["completion_ids"] == [[2, 3, 4], [7, 8], [12, 13, 14], [17]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", "raised KeyError"),
        ("too_short", "returned 3 scores for 4 completions"),
        ("not_a_number", "returned nan for completion 1"),
        ("wrong_type", "returned 'good' for completion 0"),
    ],
)
def test_a_bad_reward_is_named(rollout, name, words):
    with pytest.raises(UserError, match=words) as caught:
        Reward({f"{__name__}.{name}": 1.0})(Sort(digits=2), rollout)
    assert f"{__name__}.{name}" in str(caught.value)


@pytest.mark.parametrize("name", ["no.such.module.f", "math.no_such", "verifierr", "math.pi"])
def test_a_function_that_is_not_there(name):
    with pytest.raises(UserError, match=r"reward\.functions names"):
        Reward({name: 1.0})
