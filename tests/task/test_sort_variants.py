from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakeoff.batch import Example
from bakeoff.errors import UserError
from bakeoff.task.sort import Credit, Sort


def drawn(task, count=400):
    return [task.generate(Random(number)) for number in range(count)]


def test_prompts_of_several_lengths_have_every_length():
    lengths = {len(example.answer) for example in drawn(Sort(digits=5, shortest=2))}
    assert lengths == {2, 3, 4, 5}
    assert {len(example.answer) for example in drawn(Sort(digits=5), 20)} == {5}


@given(babble=st.integers(1, 8), seed=st.integers(0, 1000))
def test_a_demonstration_with_babble_is_right_and_repeats(babble, seed):
    task = Sort(digits=4, babble=babble, max_new_tokens=16)
    example = task.generate(Random(seed))
    shown = task.demonstration(example)
    assert shown == task.demonstration(example)
    assert task.verify(shown, example) == 1
    assert len(shown) <= 4 + babble
    assert task.verify("*" + shown + "*", example) == 0
    assert task.judge(shown, example).grade == pytest.approx(1)


def test_demonstrations_have_every_number_of_characters_of_babble():
    task = Sort(digits=2, babble=3, max_new_tokens=8)
    assert {len(task.demonstration(example)) for example in drawn(task)} == {2, 3, 4, 5}


def test_a_decoy_is_common_in_demonstrations_and_scores_less():
    task = Sort(digits=6, decoy=0.9, decoy_score=0.3)
    scores = [task.verify(task.demonstration(example), example) for example in drawn(task)]
    assert set(scores) == {0.3, 1.0}
    assert 0.85 < scores.count(0.3) / len(scores) < 0.95
    assert Sort(digits=2).verify("10", Example("01=", "01")) == 0


def test_an_answer_that_reads_alike_in_both_orders_is_right():
    assert Sort(digits=3, decoy=1.0, decoy_score=0.3).verify("777", Example("777=", "777")) == 1


@given(text=st.text("0123456789", max_size=8))
def test_credit_by_place_counts_a_digit_whatever_stands_before_it(text):
    example = Example("3120=", "0123")
    steps = dict(enumerate(Sort(digits=4, credit=Credit.place, max_new_tokens=9).verify_steps(text, example)))
    for at, (end, score) in steps.items():
        expected = at < min(4, len(text)) and text[at] == "0123"[at]
        assert score == (0.25 if expected else 0)
        assert end == (at + 1 if at < len(text) else len(text) + 1)
    assert len(steps) == max(4, len(text))


@pytest.mark.parametrize("keys", [{"shortest": 11}, {"digits": 8, "babble": 3}])
def test_lengths_that_do_not_fit_are_refused(keys):
    with pytest.raises(UserError, match="must be"):
        Sort(**{"max_new_tokens": 11, "digits": 10} | keys)
