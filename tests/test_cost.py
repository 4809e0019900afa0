"""Predicted work and cost: the work of real updates, its scaling, hours and price."""

import functools
from collections import Counter
from dataclasses import replace

import pytest

from bakeoff.config import Unit
from bakeoff.cost import cost_of
from bakeoff.errors import UserError
from bakeoff.hardware import Hardware
from bakeoff.learner.learner import passes_over
from bakeoff.loop import update_once
from bakeoff.measure.work import Operator, Work
from bakeoff.paths import CONF
from bakeoff.predict import predict
from benchmarks.start import endless
from tests.conftest import compose, loop_of

pytestmark = pytest.mark.xdist_group("cost")  # one worker, so that a prediction is made once
SMALL = ["tuned=none", "sft.steps=0", "batch.prompts=4", "batch.group_size=4", "task.heldout=4", "hardware=l4"]
SMALL += ["++model.architecture.num_hidden_layers=1"]
HARDWARE = Hardware("one", 1.0, 100.0, bandwidth_gb=1000.0, efficiency=0.5, launch_us=2.0)


GRPO = ("algorithm=grpo", "micro_tokens=60", "algorithm.optimizer.minibatches=2")
SHARED = ("algorithm=ppo", "algorithm/critic=shared")
REMAX = ("algorithm=remax", "task.max_new_tokens=24")
TRPO = ("algorithm=trpo", "algorithm.optimizer.cg_iterations=3", "algorithm.optimizer.backtracks=1", "micro_tokens=120")


def flops(operators):
    return sum(operator.flops * times for operator, times in operators.items())


@functools.cache
def predicted(*overrides):
    return predict(compose(*SMALL, *overrides))


def times(factor, operators):
    return {operator: pytest.approx(factor * count) for operator, count in operators.items()}


@pytest.mark.parametrize("overrides", [GRPO, SHARED, REMAX, TRPO], ids=lambda overrides: overrides[0])
def test_an_update_has_the_predicted_operations_exactly(overrides):
    """Of completions that use their budget, as a prediction assumes."""
    config = compose(*SMALL, *overrides)
    config.algorithm.critic.warmup_updates = 0
    loop = endless(loop_of(config))
    with Work() as counted, counted.counted(1.0, "update"):
        update_once(loop)
    work = predicted(*overrides).work
    assert sum(map(flops, work.values())) == pytest.approx(flops(counted.phases["update"]), rel=1e-12)


def test_work_is_linear_in_epochs_and_in_micro_batches():
    one, epochs = predicted(*GRPO).work, predicted(*GRPO, "algorithm.optimizer.epochs=6").work
    assert epochs["actor_update"] == times(3, one["actor_update"])
    assert epochs["experience"] == one["experience"]
    more = predicted("algorithm=grpo", "micro_tokens=60", "algorithm.optimizer.minibatches=4", "batch.prompts=8").work
    assert more["experience"] == times(2, one["experience"])
    assert more["actor_update"] == times(2, one["actor_update"])


def test_tries_and_rounds_count_at_their_maximum():
    one, five = predicted(*TRPO).work, predicted(*TRPO, "algorithm.optimizer.backtracks=5").work
    assert five["fisher_product"] == one["fisher_product"]
    passes = flops(one["experience"]) / 2  # a forward pass: reference and critic take one each
    added = (flops(five["actor_update"]) - flops(one["actor_update"])) / 4
    assert passes < added < 1.1 * passes, (
        "a try reads the sequences, and takes the logits of π_old from its hidden states"
    )
    rounds = predicted("algorithm=dapo", "algorithm.group_filter.rounds=3").work["rollout"]
    assert rounds == times(3, predicted(*GRPO).work["rollout"])


def test_the_slower_of_computing_and_moving_decides_and_launches_add():
    operators = Counter({Operator(10**12, 8, False): 2, Operator(10**12, 8, True): 1, Operator(0, 10**12, False): 0.5})
    assert HARDWARE.seconds(operators) == pytest.approx(2 * 2 + 0.02 + 0.5 * 2 + 3.5 * 2e-6)
    faster = replace(HARDWARE, efficiency=1.0)
    assert faster.seconds(operators) == pytest.approx((HARDWARE.seconds(operators) - 7e-6) / 2 + 7e-6)


def test_where_operators_queue_the_longer_of_work_and_launches_decides():
    operators = Counter({Operator(0, 10**12, False): 2})
    for launch_us, seconds in {1e3: 4, 1e6: 4, 3e6: 6}.items():
        queues = replace(HARDWARE, queues=True, launch_us=launch_us)
        assert queues.seconds(operators) == pytest.approx(seconds)


def test_hours_and_price_follow_from_the_budget_whatever_its_unit():
    config, prediction = replace(compose(*SMALL, *REMAX, "price=2.5"), hardware=HARDWARE), predicted(*REMAX)

    def cost(unit, limit):
        return cost_of(replace(config, budget=replace(config.budget, unit=Unit(unit), limit=limit)), prediction)

    hundred = cost("updates", 100)
    assert hundred.hours == pytest.approx(100 * hundred.seconds_per_update / 3600)
    assert hundred.price == pytest.approx(2.5 * hundred.hours)
    sequences = 4 * 4 + 4  # and a greedy completion of each prompt
    assert cost("sequences", 100 * sequences) == hundred
    assert cost("sequences", 100 * sequences + 1).updates == 101
    assert cost("tokens", 100 * sequences * prediction.completion) == hundred
    training = hundred.seconds_per_update - hundred.seconds["measure"]
    assert cost("seconds", 99.5 * training) == hundred


def test_the_actor_costs_nothing_while_the_critic_alone_is_trained():
    budget = ["algorithm.critic.warmup_updates=3", "budget.unit=updates", "budget.limit=5"]
    cost = cost_of(compose(*SMALL, *TRPO, *budget), predicted(*TRPO))
    actor = cost.seconds["actor_update"] + cost.seconds["fisher_product"]
    assert cost.hours * 3600 == pytest.approx(5 * cost.seconds_per_update - 3 * actor)


@pytest.mark.parametrize(("limit", "updates"), [(1, 1), (3, 3), (4, 4), (5, 4), (6, 5)], ids=str)
def test_a_budget_of_work_counts_what_each_update_reads(limit, updates):
    """An update in which the critic alone takes steps uses half of one in which the actor does too."""
    budget = ["algorithm=ppo", "algorithm.critic.warmup_updates=3", "budget.unit=work", "budget.sampling_price=0"]
    prediction = predicted("algorithm=ppo")
    config = compose(*SMALL, *budget)
    config.budget.limit = limit * passes_over(config.algorithm, False) * config.batch.sequences * prediction.completion
    assert passes_over(config.algorithm) == 2 * passes_over(config.algorithm, False)
    assert cost_of(config, prediction).updates == updates


def test_a_budget_of_work_without_a_critic_or_a_price_of_sampling_counts_the_steps():
    config = compose(*SMALL, *GRPO, "budget.unit=work", "budget.sampling_price=0")
    prediction = predicted(*GRPO)
    each = passes_over(config.algorithm) * config.batch.sequences * prediction.completion
    config.budget.limit = 3 * each + 1
    assert cost_of(config, prediction).updates == 4


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "hardware").glob("*.yaml")))
def test_every_hardware_states_its_rates_and_where_they_are_from(name):
    hardware = compose(f"hardware={name}").hardware
    assert hardware.name
    assert hardware.source
    assert hardware.bfloat16_tflops > 0
    assert hardware.calibrated == ("make calibrate" in hardware.source)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["hardware=abacus"], "unknown choice hardware=abacus; valid choices are a100"),
        (["price=2"], "price is 2.0, but hardware is none"),
        (["hardware=l4", "hardware.efficiency=0"], "hardware.efficiency is 0.0; it must be above 0 and at most 1"),
    ],
)
def test_what_cannot_be_priced_is_refused_in_one_sentence(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        compose(*overrides)
