"""Whole curves across seeds: time to a threshold, area, robust means, and how often one arm's run beats another's."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bakeoff.report.figures import MANY, colours, curves, each_run, finished, panels
from bakeoff.report.statistics import (
    area_under_curve,
    first_at,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)
from bakeoff.report.study import ACCURACY, Study
from bakeoff.report.tables import estimates, final, start_accuracy


def threshold(study: Study) -> float:
    """The held-out accuracy that runs are timed to: three quarters of the way from the start to the best final mean."""
    start = start_accuracy(study)
    best = max(mean.value for mean in estimates(study, ACCURACY).values())
    return start + 0.75 * (best - start)


def to_threshold(study: Study, against: str, level: float) -> pd.Series:
    """The x (see `curves`) at which each run first reaches a held-out accuracy, by name and seed; NaN if never."""
    runs = each_run(curves(study, ACCURACY, against))
    reached = {run: first_at(x, value, level) for run, (x, value) in runs.items()}
    return pd.Series(reached, dtype=float).rename_axis(["name", "seed"])


def aggregates(study: Study) -> pd.DataFrame:
    """A row for each arm: interquartile mean with bootstrap interval, mean height of the curve, costs to the threshold.

    Costs are medians over the seeds; a run that never reaches the threshold counts as infinite.
    """
    level, scores = threshold(study), final(study, ACCURACY)
    heights = pd.Series({run: area_under_curve(*curve) for run, curve in each_run(curves(study, ACCURACY)).items()})
    costs = {unit: to_threshold(study, unit, level).fillna(np.inf) for unit in ("sequences", "seconds")}
    rows = [
        {
            "method": name,
            "IQM [95 %]": interquartile_mean(scores[name]).text(),
            "mean height of the curve": heights[name].mean(),
            f"completions to {level:.3f}": cost["sequences"],
            f"seconds to {level:.3f}": cost["seconds"],
        }
        for name in study.arms
        for cost in [{unit: own[name].median() for unit, own in costs.items()}]
    ]
    return pd.DataFrame(rows).replace(np.inf, "never")


def improvement(study: Study) -> pd.DataFrame:
    """The probability that a run of the row's arm ends above one of the column's, ties counted half."""
    scores = final(study, ACCURACY)
    chances = {b: [probability_of_improvement(scores[a], scores[b]) for a in study.arms] for b in study.arms}
    return pd.DataFrame({"P(row > column)": study.arms, **chances})


def plot_profiles(study: Study) -> Figure:
    """The share of an arm's runs that end above each accuracy: Agarwal et al. 2021 figure 4."""
    every, many = final(study, ACCURACY), len(study.arms) > MANY
    grid = np.linspace(every.min() - 0.01, every.max() + 0.01, 400)
    figure, (axes,) = panels(1, 4.6 if many else 3.2)
    for number, (name, colour) in enumerate(colours(study.arms).items()):
        line = ["-", "--", ":", "-."][number % 4 if many else 0]
        axes.plot(grid, performance_profile(every[name], grid), line, color=colour, label=name)
    axes.set(xlabel="held-out greedy accuracy τ", ylabel="share of runs above τ", ylim=(-0.03, 1.03))
    figure.legend(ncols=3, loc="outside lower left")
    return finished(figure, "Performance profile.", study)
