"""Bias and variance of each method's first gradient, at a fixed policy."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pandas as pd
from scipy import stats

from bakeoff.report.comparisons import Family
from bakeoff.report.figures import plot_dots
from bakeoff.report.statistics import Estimate, counted, paired_ratio
from bakeoff.report.study import Study
from bakeoff.report.tables import INTERVAL, by_seed, estimates, estimates_table, number

SIGNAL = "gradient/snr_per_1000_tokens"
VARIANCE, NORM = "gradient/relative_variance", "gradient/norm"
BASELINE = [("reinforce_baseline", "reinforce"), ("rloo", "reinforce")]  # arms with the same expected gradient
METRICS = {
    "gradient/cosine": "cosine with the policy gradient",
    "gradient/bias": "bias (sine of the mean's angle)",
    SIGNAL: "signal to noise per 1000 tokens",
    "gradient/snr_per_second": "signal to noise per second",
}
plot = partial(plot_dots, metrics=METRICS)


def table(study: Study) -> pd.DataFrame:
    """A row for each arm: mean and 95 % interval over seeds of each metric, and its signal over the best arm's."""
    shares = relative_signal(study)
    fractions = [shares[name].text() for name in study.arms]
    return estimates_table(study, METRICS).assign(**{f"signal per token ÷ the best {INTERVAL}": fractions})


def relative_signal(study: Study) -> dict[str, Estimate]:
    """Signal to noise of each arm ÷ that of the best arm, by geometric means paired by seed; the best arm first.

    Seeds are different policies, whose signal differs by factors that cancel in the ratio.
    """
    values = {name: by_seed(study, SIGNAL, name) for name in study.arms}
    order = sorted(values, key=lambda name: -float(np.log(values[name]).mean()))
    return {name: paired_ratio(values[name], values[order[0]]) for name in order}


def verdict(study: Study) -> str:
    """Which gradient has the most signal per token, which have significantly less, and which are biased."""
    best, *others = shares = relative_signal(study)
    logs = {name: np.log(by_seed(study, SIGNAL, name)) for name in study.arms}
    pairs = {(a, b): (logs[a] - logs[b]).dropna() for a, b in itertools.combinations(study.arms, 2)}
    signals = Family(pairs, study.margin)
    lower = [f"{name} {shares[name].text()}" for name in others if name in signals.below(best)]
    alignment = estimates(study, "gradient/alignment")
    ones = Family({("1", a): 1 - by_seed(study, "gradient/alignment", a) for a in study.arms}, study.margin)
    biased = [f"{name} ({alignment[name].text()})" for name in ones.below("1")]
    least, arms = np.exp(signals.detectable), counted(len(study.arms), "arm")
    return (
        f"The gradient of {best} has the highest signal-to-noise ratio per 1000 completion tokens. Significantly lower "
        f"as a fraction of the best: {', '.join(lower) or 'none'}; four of five such studies find a factor of "
        f"{number(least)}. Significantly biased (a cosine between expected and policy gradient below one): "
        f"{', '.join(biased) or 'none'}. Tests are corrected (Holm), of signals for {len(pairs)} pairs, of bias for "
        f"{arms}. "
        + "".join(covariance_sentence(study, *pair) for pair in BASELINE if set(pair) <= set(study.arms))
        + "Seeds are different policies, so their effects differ."
    )


def covariance_ratio(study: Study, a: str, b: str) -> pd.Series:
    """The trace of the gradient's covariance, A ÷ B, by seed.

    It compares where both have the same expected gradient: their rollouts are the same, and so is the scale.
    """
    traces = [by_seed(study, VARIANCE, name) * by_seed(study, NORM, name) ** 2 for name in (a, b)]
    return (traces[0] / traces[1]).dropna()


def covariance_sentence(study: Study, a: str, b: str) -> str:
    """By how much A changes the variance of B's gradient, over all starts, and at how many it raises it."""
    found, mean = covariance_ratio(study, a, b), over_starts(study, a, b)
    if found.empty:
        return f"Variance (trace of the covariance), {a} ÷ {b}: not measured. "
    return (
        f"Variance (trace of the covariance), {a} ÷ {b}: {number(mean.value)} ({number(mean.low)} to "
        f"{number(mean.high)} over the starts); {a} raises it at {(found > 1).sum()} of "
        f"{counted(len(found), 'start')}. "
    )


def over_starts(study: Study, a: str, b: str) -> Estimate:
    """`covariance_ratio`: its geometric mean and its range over the starts, which no interval of a mean describes."""
    found = covariance_ratio(study, a, b)
    return Estimate(float(stats.gmean(found)), found.min(), found.max()) if len(found) else Estimate()
