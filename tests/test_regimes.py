import dataclasses
import functools
import random
from fnmatch import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakeoff.config import Budget, Unit, register
from bakeoff.errors import UserError
from bakeoff.learner.learner import Counters, method_of, passes_over
from bakeoff.metrics import DEFINITIONS
from bakeoff.paths import CONF
from bakeoff.regime import SAMPLED_ACCURACY, START, Regime, parsed
from bakeoff.validation import compose

pytestmark = pytest.mark.xdist_group("regimes")  # one worker, so that each regime is composed once
REGIMES = sorted(path.stem for path in (CONF / "regime").glob("*.yaml") if path.stem != "none")
METHODS = sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml"))


@functools.cache
def config(*overrides):
    register()
    return compose(["protocol=arena_tiny", *overrides])


@pytest.mark.parametrize("name", REGIMES)
def test_a_regime_bears_its_name_and_predicts_of_methods_and_metrics_that_exist(name):
    regime = config(f"regime={name}").regime
    assert regime.name == name
    assert regime.property
    assert regime.source
    for each in map(parsed, regime.predictions):
        assert each.left in METHODS
        assert each.right in (*METHODS, START)
        assert {each.left_in, each.right_in} <= {"", *REGIMES}
        assert any(fnmatch(each.metric, known) for known in DEFINITIONS) or "_k3_" in each.metric


def test_every_regime_but_the_yardstick_differs_from_it_in_something_beside_its_description():
    plain = dataclasses.replace(config("regime=plain"), regime=Regime())
    for name in REGIMES:
        assert (dataclasses.replace(config(f"regime={name}"), regime=Regime()) == plain) == (name == "plain")


@pytest.mark.parametrize("name", REGIMES)
def test_the_longest_right_answer_is_shorter_than_what_dapo_punishes(name):
    found = config(f"regime={name}", "algorithm=dapo")
    task = found.task
    answers = [len(example.answer) for example in task.training_examples(500, random.Random(0))]
    longest = max(answers) + getattr(task, "babble", 0) + 1  # and EOS
    free = (1 - found.algorithm.shaping.margin_share) * task.max_new_tokens
    assert longest <= free


def test_the_parts_of_a_prediction():
    each = parsed("eval/wrong_length: grpo@verbose > dr_grpo")
    assert (each.metric, each.left, each.left_in, each.equal) == ("eval/wrong_length", "grpo", "verbose", False)
    assert (parsed("rloo ~ start").metric, parsed("rloo ~ start").equal, parsed("rloo ~ start").right) == (
        SAMPLED_ACCURACY,
        True,
        START,
    )


@given(st.text(max_size=30).filter(lambda text: ">" not in text and "~" not in text))
def test_a_prediction_of_another_form_is_refused_in_a_sentence(text):
    with pytest.raises(UserError, match="has the form"):
        Regime(predictions=[text])


@pytest.mark.parametrize("method", ["grpo", "ppo", "reinforce", "trpo"])
def test_reuse_multiplies_the_epochs_of_methods_that_may_reuse_a_rollout(method):
    before, after = (method_of(config(f"algorithm={method}", f"reuse={times}")) for times in (1, 4))
    optimizer = before.optimizer
    once = before.objective.fresh_only or optimizer.needs_whole_rollout
    assert after.optimizer.epochs == optimizer.epochs * (1 if once else 4)
    assert passes_over(after) == passes_over(before) * (1 if once else 4)


def test_a_run_takes_the_factor_of_its_seed_for_every_rate():
    plain = method_of(config("algorithm=ppo"))
    for seed, factor in ((11, 2.0), (12, 0.5), (13, 1.0), (14, 2.0)):
        method = method_of(config("algorithm=ppo", f"seed={seed}", "lr_factors=[0.5,1,2]"))
        assert method.optimizer.lr == pytest.approx(factor * plain.optimizer.lr)
        assert method.critic.optimizer.lr == pytest.approx(factor * plain.critic.optimizer.lr)


def test_the_factor_of_a_trust_region_is_of_its_radius():
    plain, half = (method_of(config("algorithm=trpo", *own)).optimizer for own in ([], ["seed=12", "lr_factors=[0.5]"]))
    assert half.max_kl == pytest.approx(plain.max_kl / 2)
    assert half.lr == plain.lr


def test_work_is_the_used_part_of_a_budget_of_work():
    budget = Budget(unit=Unit.work, limit=100, sampling_price=4)
    assert Counters(tokens=1, work=25).progress(budget) == 0.25
