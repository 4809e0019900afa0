"""Rewards: weighted sums, TRL's signature, steps on tokens, and the message of a function that fails."""

import sys
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch

from bakeoff.batch import Example, Rollout, Sequences
from bakeoff.errors import UserError
from bakeoff.reward.function import as_scores, as_steps, load
from bakeoff.reward.reward import REWARDS, Reward
from bakeoff.task.sort import Sort

SEEN = {}
trusted = partial(Reward, isolated=False)


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


def thirds(completions, **_):
    """One step ends after the first character, the other at the end of the completion."""
    return [[(1, 0.25), (99, 0.5)] if text else [] for text in completions]


def bad_step(completions, **_):
    return [[(0, 1.0)] for _ in completions]


@pytest.fixture
def rollout():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]]).bool()
    ids = torch.arange(20).view(4, 5)
    return Rollout(
        examples=[Example("21=", "12", {"level": 1})] * 2 + [Example("3=", "3", {"level": 2})] * 2,
        prompts=["21=", "21=", "3=", "3="],
        completions=["12", "1", "33", ""],
        sequences=Sequences(ids, torch.ones(4, 5).bool(), mask, group_size=2),
        max_tokens=3,
        decode=lambda tokens: "x" * len(tokens),
        sampler_logprobs=torch.zeros(4, 3),
        entropy=torch.zeros(4, 3),
        ended=torch.tensor([True, True, False, True]),
    )


def test_the_total_is_the_weighted_sum_less_the_penalty_of_a_missing_eos(rollout):
    reward = trusted({"verifier": 2.0, f"{__name__}.longer": 0.5}, missing_eos_penalty=1.0)
    scores = reward(Sort(digits=2), rollout)
    assert scores.total.tolist() == [2 * 1 + 0.5 * 2, 0.5 * 1, 0.5 * 2 - 1.0, 0.0]
    assert scores.exact.tolist() == [True, False, False, False]
    assert scores.terms[f"{__name__}.longer"].tolist() == [2, 1, 2, 0]


def test_user_functions_receive_the_arguments_that_trl_passes(rollout):
    trusted({f"{__name__}.longer": 1.0})(Sort(digits=2), rollout)
    assert SEEN["prompts"] == ["21=", "21=", "3=", "3="]
    assert SEEN["completions"] == ["12", "1", "33", ""]
    assert SEEN["level"] == [1, 1, 2, 2]
    assert SEEN["answer"] == ["12", "12", "3", "3"]
    assert SEEN["completion_ids"] == [[2, 3, 4], [7, 8], [12, 13, 14], [17]]


def test_a_column_that_one_row_has_is_none_for_the_others_and_none_replaces_what_the_policy_wrote(rollout):
    rollout.examples[3] = Example("3=", "3", {"hint": "h", "completions": "perfect", "prompts": "easy", "answer": "33"})
    trusted({f"{__name__}.longer": 1.0})(Sort(digits=2), rollout)
    assert SEEN["hint"] == [None, None, None, "h"]
    assert SEEN["level"] == [1, 1, 2, None]
    assert SEEN["completions"] == ["12", "1", "33", ""]
    assert SEEN["prompts"] == ["21=", "21=", "3=", "3="]
    assert SEEN["answer"] == ["12", "12", "3", "3"]


@pytest.mark.parametrize(
    "returned",
    [
        [1, True, 2.0, Fraction(1, 2)],
        [np.float32(1), np.int64(1), np.bool_(True), np.array(2.0)],
        np.arange(4),
        torch.arange(4.0),
        [torch.tensor(1), torch.tensor([2.0]), torch.tensor(True), torch.tensor(0.5, dtype=torch.bfloat16)],
        (score for score in range(4)),
    ],
    ids=["python", "numpy", "array", "tensor", "torch", "generator"],
)
def test_whatever_float_takes_is_a_score(returned):
    scores = as_scores("f", returned, 4)
    assert all(type(score) is float for score in scores)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "f returned None; it must return a list"),
        (0.5, "f returned 0.5; it must return a list"),
        (["1.0", 0.0], "f returned '1.0' for completion 0"),
        ([0.0, 1e39], "f returned 1e\\+39 for completion 1"),
        ([0.0, 10**400], "for completion 1"),
        ([0.0, np.float32("inf")], "for completion 1"),
        ([torch.ones(2), 0.0], "for completion 0"),
        ([1j, 0.0], "for completion 0"),
        ([0.0], "f returned 1 entries for 2 completions"),
    ],
)
def test_a_score_that_is_no_finite_number_is_named_with_its_completion(returned, words):
    with pytest.raises(UserError, match=words):
        as_scores("f", returned, 2)


@pytest.mark.parametrize("returned", [[[], None], [[], [3]], [[], [(1, None)]], [[], [(1, "0.5")]], [[], "ab"], None])
def test_steps_that_are_none_are_refused(returned):
    with pytest.raises(UserError, match=r"f returned"):
        as_steps("f", returned, 2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", "raised KeyError"),
        ("too_short", "returned 3 entries for 4 completions"),
        ("not_a_number", "returned nan for completion 1"),
        ("wrong_type", "returned 'good' for completion 0"),
    ],
)
def test_a_reward_function_that_fails_is_named(rollout, name, words):
    with pytest.raises(UserError, match=words) as caught:
        trusted({f"{__name__}.{name}": 1.0})(Sort(digits=2), rollout)
    assert f"{__name__}.{name}" in str(caught.value)


@pytest.mark.parametrize("name", ["no.such.module.f", "math.no_such", "verifierr", "math.pi"])
def test_a_function_that_cannot_be_imported_is_named(name):
    with pytest.raises(UserError, match=r"reward\.functions names"):
        Reward({name: 1.0})


def test_a_step_is_scored_on_the_token_that_completes_it(rollout):
    """The first step ends on token 0, the other beyond the text and so on the last token of the completion."""
    scores = trusted({}, process={f"{__name__}.thirds": 2.0})(Sort(digits=2), rollout)
    mask = rollout.sequences.mask
    assert scores.process.on_tokens(scores.process.score, mask).tolist() == [
        [0.5, 0, 1.0], [0.5, 1.0, 0], [0.5, 0, 1.0], [0, 0, 0],
    ]  # fmt: skip
    assert scores.total.tolist() == [1.5, 1.5, 1.5, 0]
    assert scores.terms[f"{__name__}.thirds_steps"].tolist() == [0.75, 0.75, 0.75, 0]
    assert scores.outcome.tolist() == [0, 0, 0, 0]


def test_a_token_of_several_characters_completes_the_steps_within_it(rollout):
    rollout.decode = lambda tokens: "xxxx" * len(tokens)
    scores = trusted({}, process={f"{__name__}.thirds": 1.0})(Sort(digits=2), rollout)
    assert scores.process.token[:2].tolist() == [0, 2]


def test_the_total_is_the_sum_of_outcome_and_steps(rollout):
    scores = trusted({"verifier": 1.0}, process={f"{__name__}.thirds": 1.0})(Sort(digits=2), rollout)
    assert scores.total.tolist() == [1.75, 0.75, 0.75, 0]


def test_a_step_that_ends_before_the_first_character_is_refused(rollout):
    with pytest.raises(
        UserError, match=r"reward\.process: .*bad_step .*returned the step \(0, 1\.0\) for completion 0"
    ):
        trusted({}, process={f"{__name__}.bad_step": 1.0})(Sort(digits=2), rollout)


def test_the_learned_score_is_weighted_like_any_other_function(rollout):
    learned = torch.tensor([4.0, 3.0, 2.0, 1.0])
    scores = Reward({"learned": 1.0, "verifier": 10.0})(Sort(digits=2, shortest=1), rollout, learned)
    assert scores.total.tolist() == [14, 3, 2, 1]
    assert scores.true.tolist() == pytest.approx([1, 0.25, 0.5, 0]), "half for all, half for the share of right digits"


def test_no_reward_at_all_is_refused():
    with pytest.raises(UserError, match=r"reward\.functions and reward\.process are empty"):
        Reward({})


def test_a_function_is_imported_from_the_working_directory(tmp_path, monkeypatch):
    """The path of a console script does not include it."""
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lengths_of_mine.py").write_text("def count(completions):\n    return [len(c) for c in completions]\n")
    assert load("lengths_of_mine.count", "reward.functions", REWARDS)(["ab"]) == [2]
