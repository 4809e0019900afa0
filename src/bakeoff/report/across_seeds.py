"""Whole curves across seeds: time to a threshold, area, robust means, and how often one arm's run beats another's."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bakeoff.report.curve import area_under_curve, first_at, fitted_sigmoid, learning_curve
from bakeoff.report.figures import MANY, colours, curves, each_run, finished, panels
from bakeoff.report.statistics import (
    FEWEST,
    Estimate,
    bootstrapped,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)
from bakeoff.report.study import ACCURACY, SAMPLED, Study
from bakeoff.report.tables import FITTED, INTERVAL, final, mean_text, start_accuracy

FITS = 200  # of resampled seeds, for the interval of a fitted curve


def threshold(study: Study, metric: str = ACCURACY) -> float:
    """The held-out accuracy that runs are timed to, which no arm decides: the study's own, else half way from the start
    to 1.
    """
    start = start_accuracy(study, metric)
    return float(study.declared("threshold") or 0) or start + 0.5 * (1 - start)


def to_threshold(study: Study, against: str, level: float, metric: str = ACCURACY) -> pd.Series:
    """The x (see `curves`) at which each run first reaches a held-out accuracy, by name and seed; NaN if never."""
    runs = each_run(curves(study, metric, against))
    reached = {run: first_at(x, value, level) for run, (x, value) in runs.items()}
    return pd.Series(reached, dtype=float).rename_axis(["name", "seed"])


def restricted(study: Study, against: str, level: float, metric: str = ACCURACY) -> pd.Series:
    """The sequences, tokens or seconds (`against`) of each run until it reaches a held-out accuracy, or in all.

    A run that never reaches it is censored at its budget, so means of these values are restricted means: they compare
    what was used, and say nothing of what the run would have needed.
    """
    return to_threshold(study, against, level, metric).fillna(final(study, f"progress/{against}"))


def reached(study: Study, level: float) -> pd.DataFrame:
    """By arm (index): `reached`, number of runs that reach a held-out accuracy, and `runs`."""
    runs = to_threshold(study, "sequences", level).groupby("name", sort=False)
    return pd.DataFrame({"reached": runs.count(), "runs": runs.size()})


def aggregates(study: Study) -> pd.DataFrame:
    """A row for each arm: interquartile mean with bootstrap interval, mean height of the curve, runs that reach the
    threshold, and restricted means of what they use until then.

    The interquartile mean is left out where there are too few seeds for it.
    """
    level, scores = threshold(study), final(study, ACCURACY)
    heights = pd.Series({run: area_under_curve(*curve) for run, curve in each_run(curves(study, ACCURACY)).items()})
    costs = {unit: restricted(study, unit, level) for unit in ("sequences", "seconds")}
    share = reached(study, level)
    rows = [
        {
            "method": name,
            "IQM [95 %]": interquartile_mean(scores[name]).text(),
            "mean height of the curve": mean_text(heights[name]),
            f"runs that reach {level:.3f}": f"{share['reached'][name]} of {share['runs'][name]}",
            "completions until then, or in all": mean_text(costs["sequences"][name]),
            "seconds until then, or in all": mean_text(costs["seconds"][name]),
        }
        for name in study.arms
    ]
    table = pd.DataFrame(rows)
    return table if study.seeds >= FEWEST else table.drop(columns="IQM [95 %]")


def fits(study: Study) -> pd.DataFrame:
    """A row for each arm: the sigmoid of `learning_curve`, fitted to the mean over seeds of sampled accuracy.

    Completions are on the x axis. Intervals are a percentile bootstrap over seeds, stated from FEWEST seeds on.
    """
    runs = each_run(curves(study, SAMPLED, "sequences"))
    labels = [f"{each} {INTERVAL}" for each in FITTED]
    rows = []
    for name in study.arms:
        own = [curve for run, curve in runs.items() if run[0] == name]
        found = fit(own) if own else (Estimate(),) * len(labels)
        rows.append({"method": name} | {label: each.text() for label, each in zip(labels, found, strict=True)})
    return pd.DataFrame(rows)


def fit(runs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Estimate, ...]:
    """The parameters of `learning_curve` of the runs' mean curve; all are NaN where it does not fit."""
    x, rng = runs[0][0], np.random.default_rng(0)
    lines = np.array([np.interp(x, *run) for run in runs])
    found = learning_curve(x, lines.mean(0))
    if len(runs) < FEWEST or np.isnan(found).any():
        return tuple(map(Estimate, found))
    seeds = rng.integers(len(runs), size=(FITS, len(runs)))
    drawn = np.array([fitted_sigmoid(x, lines[own].mean(0))[:3] for own in seeds])
    return tuple(bootstrapped(each, [lines]) for each in np.vstack([found, drawn]).T)


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
    return finished(figure, "Performance profile: the share of runs that end above each accuracy.", study)
