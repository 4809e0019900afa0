"""Seconds of an update, hours and price of a budget: from the work that a prediction counts and a device's rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bakeoff.config import Config, Unit
from bakeoff.learner.learner import method_of, passes_over
from bakeoff.measure import TRAINING
from bakeoff.predict import Prediction


@dataclass
class Cost:
    """What training costs on a device.

    seconds   seconds of an update, by phase
    updates   number of updates of the budget
    hours     hours of all these updates
    price     price of these hours; 0 where an hour has no price
    """

    seconds: dict[str, float]
    updates: int
    hours: float
    price: float

    @property
    def seconds_per_update(self) -> float:
        """Seconds of an update."""
        return sum(self.seconds.values())


def cost_of(config: Config, prediction: Prediction) -> Cost:
    """The cost of a configuration's budget on its `hardware`, by its prediction.

    Each of several processes has a device and a share of the work. Left out are communication, the supervised start,
    evaluation, checkpoints, the renewal of models, and the code that scores.
    """
    seconds = {phase: config.hardware.seconds(operators) for phase, operators in prediction.work.items()}
    actor = seconds["actor_update"] + seconds.get("fisher_product", 0.0)
    training = sum(seconds.get(phase, 0.0) for phase in TRAINING)
    updates = updates_of(config, prediction.completion, training, training - actor)
    without = min(updates, config.algorithm.critic.warmup_updates)  # updates in which the actor takes no step
    hours = (updates * sum(seconds.values()) - without * actor) / 3600
    return Cost(seconds, updates, hours, hours * config.price * config.processes)


def updates_of(config: Config, completion: int, seconds: float, warm_seconds: float) -> int:
    """Number of updates until the budget is used, by completions of that number of tokens.

    An update trains for `seconds`, or for `warm_seconds` while the critic alone takes steps.
    """
    algorithm, batch, sampled = method_of(config), config.batch, config.budget.sampling_price
    sequences = batch.sequences * algorithm.group_filter.rounds + batch.prompts * algorithm.baseline.needs_greedy

    def used(actor_moves: bool) -> float:
        """The part of the budget that an update uses."""
        return {
            Unit.updates: 1,
            Unit.sequences: sequences,
            Unit.tokens: sequences * completion,
            Unit.seconds: seconds if actor_moves else warm_seconds,
            Unit.work: completion * (sampled * sequences + passes_over(algorithm, actor_moves) * batch.sequences),
        }[config.budget.unit]

    limit, warm = config.budget.limit, algorithm.critic.warmup_updates
    if limit <= warm * used(False):
        return math.ceil(limit / used(False))
    return warm + math.ceil((limit - warm * used(False)) / used(True))
