"""Metrics of a user: functions of scored completions, whose values are logged and steer nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from typing import Any

import numpy as np
import torch

from bakeoff.batch import Rollout
from bakeoff.errors import UserError
from bakeoff.reward.function import UserFunction, call_arguments
from bakeoff.reward.isolation import Workers, attempt
from bakeoff.reward.reward import Reward

Scored = dict[str, list[Any]]
SCORED = ("rewards", "correct")  # arguments of a metric, beside those of a reward function


def scored(rollout: Rollout, rewards: list[float], correct: list[bool]) -> Scored:
    """Keyword arguments of a metric: those of a reward function, and the reward and the verdict of each completion."""
    more: list[list[Any]] = [rewards, correct]
    return call_arguments(rollout) | dict(zip(SCORED, more, strict=True))


def joined(parts: list[Scored]) -> Scored:
    """The arguments of several rollouts as one; a column that one lacks is None there."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {n: [v for part in parts for v in part.get(n, [None] * len(part["completions"]))] for n in names}


class UserMetrics:
    """The functions of `measure.functions`, called with the limits of reward functions, in workers of their own.

    So they share no state with the rewards. Where they are called in the run's process, they get a copy of the
    completions, and generators are put back.
    """

    def __init__(self, functions: dict[str, UserFunction], reward: Reward, report: Callable[[str], None]) -> None:
        self.functions, self._reward, self._report = functions, reward, report
        self._reported: set[str] = set()

    def __call__(self, arguments: Scored, strict: bool = False) -> dict[str, float]:
        """Values by the metric's name.

        A metric that fails has none, and its first failure is reported; where `strict`, it raises UserError.
        """
        values: dict[str, float] = {}
        for name, function in self.functions.items():
            try:
                found = self._call(function, arguments)
            except UserError as error:
                found = error
            if isinstance(found, dict):
                values |= {f"{name}_{key}" if key else name: value for key, value in found.items()}
                continue
            fault = str(found) if isinstance(found, UserError) else f"{function.place} {found.reason}"
            if strict:
                raise UserError(f"{fault.rstrip('.')}; it is called with {', '.join(arguments)}.")
            if name not in self._reported:
                self._reported.add(name)
                self._report(f"{fault.rstrip('.')}; the metric has no value there")
        return values

    def _call(self, function: UserFunction, arguments: Scored) -> Any:
        """What a function returns, or its Failure."""
        if not self._reward.isolated:
            with same_draws():
                return attempt(function, (deepcopy(arguments),))
        seconds = self._reward.timeout_s * len(arguments["completions"])
        return self._workers.map(function.label, [(arguments,)], seconds, torch.initial_seed(), spread=False)[0]

    @cached_property
    def _workers(self) -> Workers:
        return Workers({each.label: each for each in self.functions.values()}, self._reward.memory_mb)


@contextmanager
def same_draws() -> Iterator[None]:
    """Puts the process's generators back to where they were."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
