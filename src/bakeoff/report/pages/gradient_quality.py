"""Bias and variance of each method's first gradient, at a fixed policy."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from bakeoff.report.claim import Claim, ratio
from bakeoff.report.figures import plot_dots
from bakeoff.report.statistics import Estimate, paired_ratio
from bakeoff.report.study import Study
from bakeoff.report.tables import by_seed, estimates, estimates_table

SIGNAL = "gradient/snr_per_1000_tokens"
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
    return estimates_table(study, METRICS).assign(**{"signal per token ÷ the best": fractions})


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
    lower = [f"{name} {shares[name].text()}" for name in others if shares[name].high < 1]
    alignment = estimates(study, "gradient/alignment")
    biased = [f"{name} ({each.text()})" for name, each in alignment.items() if each.high < 1]
    return (
        f"The gradient of {best} has the highest signal-to-noise ratio per 1000 completion tokens. Significantly lower "
        f"as a fraction of the best: {', '.join(lower) or 'none'}. Significantly biased (a cosine between expected and "
        f"policy gradient below one): {', '.join(biased) or 'none'}."
    )


CLAIMS = [
    Claim(
        "3 baseline",
        "A baseline lowers the variance of the gradient",
        "relative variance, batch mean ÷ none",
        ratio("reinforce_baseline", "reinforce", "gradient/relative_variance"),
        below=1.0,
    ),
]
