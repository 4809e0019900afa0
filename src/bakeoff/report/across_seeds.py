"""More than a mean at the end: robust means, whole curves, time to a threshold, and how often one arm beats another."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bakeoff.report.figures import MANY, colours, curves, each_run, laid_out, style
from bakeoff.report.statistics import (
    area_under_curve,
    first_at,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
)
from bakeoff.report.study import ACCURACY, Study, provenance
from bakeoff.report.tables import by_seed, first

RISE = 0.75  # of the way from the start to the best final mean: the threshold that curves are timed to


def threshold(study: Study) -> float:
    """The held-out accuracy that arms are timed to: three quarters of the way to the best final mean."""
    start = float(first(study, ACCURACY)["value"].mean())
    best = max(float(by_seed(study, ACCURACY, name).mean()) for name in study.arms)
    return start + RISE * (best - start)


def to_threshold(study: Study, against: str, level: float) -> pd.DataFrame:
    """Where each run first reaches a held-out accuracy: name, seed, x (NaN where never); `against` as in `curves`."""
    runs = each_run(curves(study, ACCURACY, against))
    rows = [(*run, first_at(x, value, level)) for run, (x, value) in runs.items()]
    return pd.DataFrame(rows, columns=["name", "seed", "x"])


def areas(study: Study) -> pd.DataFrame:
    """The mean height of each run's curve of held-out accuracy over its updates: name, seed, area."""
    rows = [(*run, area_under_curve(x, value)) for run, (x, value) in each_run(curves(study, ACCURACY)).items()]
    return pd.DataFrame(rows, columns=["name", "seed", "area"])


def aggregates(study: Study) -> pd.DataFrame:
    """A row an arm: interquartile mean with bootstrap interval, area under the curve, and time to the threshold.

    Times are medians over the seeds, in which a run that never gets there counts as infinite.
    """
    level = threshold(study)
    sequences, seconds = (to_threshold(study, against, level).fillna(np.inf) for against in ("sequences", "seconds"))
    area = areas(study)
    rows = []
    for name in study.arms:
        value, low, high = stratified_interval([by_seed(study, ACCURACY, name).to_numpy()])
        rows.append(
            {
                "method": name,
                "IQM": value,
                "low": low,
                "high": high,
                "area under curve": area[area["name"] == name]["area"].mean(),
                f"sequences to {level:.3f}": sequences[sequences["name"] == name]["x"].median(),
                f"seconds to {level:.3f}": seconds[seconds["name"] == name]["x"].median(),
            }
        )
    return pd.DataFrame(rows)


def improvement(study: Study) -> pd.DataFrame:
    """P(row's run beats column's run) at the end, ties half: a row and a column an arm."""
    scores = {name: [by_seed(study, ACCURACY, name).to_numpy()] for name in study.arms}
    return pd.DataFrame(
        [[probability_of_improvement(scores[a], scores[b]) for b in study.arms] for a in study.arms],
        index=pd.Index(study.arms, name="P(row > column)"),
        columns=study.arms,
    )


def plot_profiles(study: Study) -> Figure:
    """The share of an arm's runs that end above each accuracy: Agarwal et al. 2021 figure 4."""
    style()
    scores = {name: by_seed(study, ACCURACY, name).to_numpy() for name in study.arms}
    every = np.concatenate(list(scores.values()))
    grid = np.linspace(every.min() - 0.01, every.max() + 0.01, 400)
    many = len(scores) > MANY
    figure, axes = plt.subplots(figsize=(9.2 if many else 7.2, 3.8 + many), layout="constrained")
    palette = colours(study.arms)
    dashes = ["-", "--", ":", "-."]
    for number, (name, values) in enumerate(scores.items()):
        line = dashes[number % 4 if many else 0]
        axes.plot(grid, performance_profile(values, grid), line, color=palette[name], lw=2, label=name)
    axes.set_xlabel("held-out greedy accuracy τ")
    axes.set_ylabel("share of runs above τ")
    axes.set_ylim(-0.03, 1.03)
    if many:
        figure.legend(frameon=False, fontsize=9, loc="outside right upper")
    else:
        axes.legend(frameon=False, fontsize=9, loc="lower left")
    axes.set_title(f"Performance profile. {provenance(study)}", fontsize=10)
    return laid_out(figure)
