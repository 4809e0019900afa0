"""The claims on the road from REINFORCE to GRPO, each with the study that tests it, and one rule for all.

A claim is an effect and a bar. It is supported where the effect's whole 95 % interval lies on the claimed side of the
bar, not supported where it lies on the other, and undecided where the bar is inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bakeoff.measure import TRAINING
from bakeoff.report.bounds import spreads, target_ratios
from bakeoff.report.memory import ledger, peaks
from bakeoff.report.reuse import reuse, sampling_share, saved
from bakeoff.report.statistics import mean_interval, paired_difference, paired_ratio
from bakeoff.report.study import ACCURACY, Study
from bakeoff.report.tables import by_seed

Effect = tuple[float, float, float]  # with its 95 % interval


@dataclass
class Claim:
    """A sentence that a study can test.

    step     of the road, as docs/methods.md has it
    text     what is claimed
    study    the study that tests it
    effect   what is measured, as a name and as a function of the study
    above    whether the claim is that the effect is above the bar, or below it
    """

    step: str
    text: str
    study: str
    name: str
    effect: Callable[[Study], Effect]
    bar: float
    above: bool

    @property
    def rule(self) -> str:
        """When it is supported, in words."""
        return f"interval {'above' if self.above else 'below'} {self.bar:g}"

    def verdict(self, low: float, high: float) -> str:
        """What an interval says of the claim."""
        if math.isnan(low) or low <= self.bar <= high:
            return "undecided"
        return "supported" if (low > self.bar) == self.above else "not supported"


def difference(a: str, b: str, metric: str = ACCURACY) -> Callable[[Study], Effect]:
    """The paired difference of a final metric between two arms."""
    return lambda study: paired_difference(by_seed(study, metric, a), by_seed(study, metric, b))


def metric_ratio(a: str, b: str, metric: str) -> Callable[[Study], Effect]:
    """The paired ratio of a final metric between two arms."""
    return lambda study: paired_ratio(by_seed(study, metric, a), by_seed(study, metric, b))


def share_of_sampling(study: Study) -> Effect:
    own = sampling_share(study).query("name == 'baseline_none'")
    return mean_interval(own["value"])


def reuse_loss(measure: str, more: int, fewer: int) -> Callable[[Study], Effect]:
    """The paired difference of a measure between numbers of epochs, of samples that are weighed without a bound."""

    def effect(study: Study) -> Effect:
        own = reuse(study).query("objective == 'ratio'").pivot(index="seed", columns="epochs", values=measure)
        return paired_difference(own[more], own[fewer])

    return effect


def largest_step(study: Study, name: str) -> pd.Series:
    """The largest KL of an update of each run, by seed."""
    rows = study.of("kl/behaviour_k3_per_token")
    return rows[rows["name"] == name].groupby("seed")["value"].max()


def update_seconds(study: Study, name: str) -> pd.Series:
    """Mean training seconds of an update of each run, by seed."""
    rows = study.of(*(f"time/{phase}" for phase in TRAINING))
    return rows[rows["name"] == name].groupby(["seed", "step"])["value"].sum().groupby("seed").mean()


def harder_to_pick(study: Study) -> Effect:
    spread = spreads(study)
    return paired_difference(spread["fixed penalty"], spread["adaptive penalty"])


def distance_from_target(study: Study) -> Effect:
    """The factor by which the median KL of an update misses its target, mean over targets, by seed."""
    table = target_ratios(study)
    missed = table.assign(miss=np.abs(np.log(table["ratio"]))).groupby("seed")["miss"].mean()
    mean, low, high = mean_interval(missed)
    return math.exp(mean), math.exp(low), math.exp(high)


def four_models(study: Study) -> Effect:
    """The weights of all four models over the actor's."""
    names = [f"memory/weights_{role}_mb" for role in ("actor", "critic", "reference", "reward_model")]
    rows = study.of(*names).query("name == 'ppo'")
    wide = rows.pivot_table(index="seed", columns="metric", values="value", aggfunc="max")
    return mean_interval(wide.sum(axis=1) / wide["memory/weights_actor_mb"])


def critic_over_actor(study: Study) -> Effect:
    """What is held for the critic over what is held for the actor, each at the peak of its own update."""
    cells = ledger(study).query("name == 'ppo'")

    def held(role: str, phase: str) -> pd.Series:
        own = cells[(cells["role"] == role) & (cells["phase"] == phase)]
        return own.groupby("seed")["mb"].sum()

    return paired_ratio(held("critic", "critic_update"), held("actor", "actor_update"))


def memory_saved(study: Study) -> Effect:
    """The share of PPO's largest peak that GRPO does without."""
    largest = peaks(study).groupby(["name", "seed"])["mb"].max()
    return mean_interval(1 - largest["grpo"] / largest["ppo"])


CLAIMS = [
    Claim(
        "1 REINFORCE",
        "Fresh samples for every update: nearly all of the time goes into sampling",
        "baselines",
        "share of training time in sampling",
        share_of_sampling,
        0.8,
        True,
    ),
    Claim(
        "2 importance sampling",
        "Reusing samples saves samples",
        "sample_reuse",
        "completions to the threshold, 4 epochs ÷ 1",
        lambda study: saved(study, "sequences", "ratio", 4),
        1.0,
        False,
    ),
    Claim(
        "2 importance sampling",
        "Reusing samples saves time",
        "sample_reuse",
        "seconds to the threshold, 4 epochs ÷ 1",
        lambda study: saved(study, "seconds", "ratio", 4),
        1.0,
        False,
    ),
    Claim(
        "2 importance sampling",
        "The variance of the weights grows with reuse",
        "sample_reuse",
        "effective sample size, 8 epochs − 1",
        reuse_loss("effective", 8, 1),
        0.0,
        False,
    ),
    Claim(
        "2 importance sampling",
        "and limits how far reuse goes",
        "sample_reuse",
        "final accuracy, 8 epochs − 2",
        reuse_loss("accuracy", 8, 2),
        0.0,
        False,
    ),
    Claim(
        "3 baseline",
        "A baseline lowers the variance of the gradient",
        "gradient_quality",
        "relative variance, batch mean ÷ none",
        metric_ratio("reinforce_baseline", "reinforce", "gradient/relative_variance"),
        1.0,
        False,
    ),
    Claim(
        "3 baseline",
        "All-positive rewards raise every action, so a baseline learns better",
        "baselines",
        "final accuracy, batch mean − none",
        difference("baseline_batch_mean", "baseline_none"),
        0.0,
        True,
    ),
    Claim(
        "4 TRPO",
        "Its steps are stable",
        "all_methods",
        "largest KL of an update, TRPO ÷ PPO",
        lambda study: paired_ratio(largest_step(study, "trpo"), largest_step(study, "ppo")),
        1.0,
        False,
    ),
    Claim(
        "4 TRPO",
        "Conjugate gradients are costly",
        "all_methods",
        "seconds of an update, TRPO ÷ PPO",
        lambda study: paired_ratio(update_seconds(study, "trpo"), update_seconds(study, "ppo")),
        2.0,
        True,
    ),
    Claim(
        "5 fixed penalty",
        "It is hard to pick one β: a wrong one costs more than a wrong target",
        "clip_vs_adaptive",
        "best − worst accuracy over a factor of 100 in β, less that over 9 in the target",
        harder_to_pick,
        0.0,
        True,
    ),
    Claim(
        "6 adaptive penalty",
        "β adapts to a target KL",
        "clip_vs_adaptive",
        "factor by which the median KL misses its target",
        distance_from_target,
        1.5,
        False,
    ),
    Claim(
        "7 clip",
        "The clip is usually better than the adaptive penalty",
        "clip_vs_adaptive",
        "final accuracy, clip 0.2 − adaptive 0.006",
        difference("clip_0_2", "adaptive_0_006"),
        0.0,
        True,
    ),
    Claim(
        "8 RLHF",
        "Four models are heavy",
        "rlhf",
        "weights of the four models ÷ the actor's",
        four_models,
        3.0,
        True,
    ),
    Claim(
        "9 GRPO",
        "The critic costs as much memory as the actor",
        "methods",
        "held for the critic ÷ held for the actor, in their updates",
        critic_over_actor,
        0.9,
        True,
    ),
    Claim(
        "9 GRPO",
        "Dropping the critic saves that memory",
        "methods",
        "share of PPO's largest peak that GRPO saves",
        memory_saved,
        0.0,
        True,
    ),
    Claim(
        "9 GRPO",
        "at no loss of reward (a loss of 0.02 would be one)",
        "methods",
        "final accuracy, GRPO − PPO",
        difference("grpo", "ppo"),
        -0.02,
        True,
    ),
    Claim(
        "9 GRPO",
        "A critic's estimate is hard for a language model: its advantages follow the truth less than the group's",
        "advantage_quality",
        "correlation with the truth, critic − group mean",
        difference("baseline_critic", "baseline_group_mean", "advantage/correlation"),
        0.0,
        False,
    ),
]
