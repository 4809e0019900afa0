"""What reusing a rollout saves and what it costs: epochs against completions, time and the variance of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from bakeoff.measure import TRAINING
from bakeoff.report.across_seeds import threshold, to_threshold
from bakeoff.report.claim import Claim
from bakeoff.report.figures import colours, finished, panels
from bakeoff.report.statistics import Estimate, mean_interval, paired_difference, paired_ratio
from bakeoff.report.study import ACCURACY, Study
from bakeoff.report.tables import final_by_run

OBJECTIVE, EPOCHS = "choice/algorithm/objective", "algorithm.optimizer.epochs"
MEASURES = {
    "accuracy": "held-out greedy accuracy",
    "sequences": "completions to the threshold",
    "seconds": "training seconds to the threshold",
    "effective": "effective sample size (share)",
    "sampling": "share of training time in sampling",
}


def sampling_share(study: Study) -> pd.Series:
    """The share of a run's training time that sampling takes, by name and seed."""
    rows = study.of(*(f"time/{phase}" for phase in TRAINING)).astype({"name": str})
    rollout = rows[rows["metric"] == "time/rollout"]
    return rollout.groupby(["name", "seed"])["value"].sum() / rows.groupby(["name", "seed"])["value"].sum()


def runs_by_epochs(study: Study) -> pd.DataFrame:
    """A row for each run: name, seed, objective, epochs and MEASURES; NaN if it never reaches the threshold."""
    rows = study.runs[["run", "name", "seed"]].set_index(["name", "seed"])
    rows["objective"] = rows["run"].map(study.param(OBJECTIVE))
    rows["epochs"] = rows["run"].map(study.param(EPOCHS)).astype(int)
    level, ess = threshold(study), study.of("policy/effective_sample_size").astype({"name": str})
    rows["accuracy"] = final_by_run(study, ACCURACY)
    rows["sequences"] = to_threshold(study, "sequences", level)
    rows["seconds"] = to_threshold(study, "seconds", level)
    rows["effective"] = ess.groupby(["name", "seed"])["value"].mean()
    rows["sampling"] = sampling_share(study)
    return rows.drop(columns="run").reset_index()


def table(study: Study) -> pd.DataFrame:
    """A row for each objective and number of epochs: means over seeds, intervals for the accuracy."""
    rows = []
    for (objective, epochs), own in runs_by_epochs(study).groupby(["objective", "epochs"], sort=False):
        rows.append(
            {
                "objective": objective,
                "epochs": epochs,
                "held-out greedy accuracy [95 %]": mean_interval(own["accuracy"]).text(),
                "completions to threshold": own["sequences"].mean(skipna=False),
                "seconds to threshold": own["seconds"].mean(skipna=False),
                "effective sample size": own["effective"].mean(),
            }
        )
    return pd.DataFrame(rows)


def saved(study: Study, measure: str, objective: str, epochs: int) -> Estimate:
    """A measure with a number of epochs ÷ that with one: geometric mean with 95 % interval, paired by seed.

    A run that never reaches the threshold counts with all that it used, a lower bound.
    """
    runs = runs_by_epochs(study).set_index(["name", "seed"])
    for unit in ("sequences", "seconds"):
        runs[unit] = runs[unit].fillna(final_by_run(study, f"progress/{unit}"))
    wide = runs[runs["objective"] == objective].reset_index().pivot(index="seed", columns="epochs", values=measure)
    if not {1, epochs} <= set(wide.columns):
        return Estimate(math.nan, math.nan, math.nan)
    return paired_ratio(wide[epochs], wide[1])


def verdict(study: Study) -> str:
    """With how many epochs accuracy is highest, and what they save in completions and time, for each objective."""
    level, runs, parts = threshold(study), runs_by_epochs(study), []
    for objective in dict.fromkeys(runs["objective"]):
        means = runs[runs["objective"] == objective].groupby("epochs")[["accuracy", "effective"]].mean()
        best, most = int(means["accuracy"].idxmax()), int(means.index[-1])
        text = (
            f"With the objective `{objective}`, accuracy is highest with {best} epoch{'s' * (best > 1)} "
            f"({means['accuracy'][best]:.3f}; with 1: {means['accuracy'].iloc[0]:.3f}, with {most}: "
            f"{means['accuracy'].iloc[-1]:.3f})"
        )
        if best > 1:
            text += (
                f"; relative to one epoch, they reach {level:.3f} with "
                f"{saved(study, 'sequences', objective, best).text()} of the completions and "
                f"{saved(study, 'seconds', objective, best).text()} of the time"
            )
        effective = means["effective"]
        parts.append(
            f"{text}; the effective sample size falls from {effective.iloc[0]:.3f} to {effective.iloc[-1]:.3f}."
        )
    return " ".join(parts)


def plot(study: Study) -> Figure:
    """A panel for each measure over the epochs: means with 95 % intervals, a line for each objective."""
    runs = runs_by_epochs(study)
    palette, ticks = colours(list(dict.fromkeys(runs["objective"]))), sorted(set(runs["epochs"]))
    figure, all_axes = panels(3, 2, 2.4)
    for axes, (measure, label) in zip(all_axes, MEASURES.items(), strict=False):
        for objective, own in runs.groupby("objective", sort=False):
            means = pd.DataFrame({x: mean_interval(rows[measure]) for x, rows in own.groupby("epochs")}).T
            axes.fill_between(means.index, means[1], means[2], color=palette[str(objective)], alpha=0.15, lw=0)
            axes.plot(means.index, means[0], "o-", color=palette[str(objective)], ms=5, mec="white", label=objective)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set(xlabel="epochs over each rollout", title=label)
    all_axes[-1].set_visible(False)
    figure.legend(*all_axes[0].get_legend_handles_labels(), title="objective", loc="outside lower right")
    return finished(figure, f"Means with 95 % intervals; threshold {threshold(study):.3f}.", study)


def change(measure: str, more: int, fewer: int) -> Callable[[Study], Estimate]:
    """The paired difference of a measure between two numbers of epochs, for samples with unbounded weights."""

    def effect(study: Study) -> Estimate:
        own = runs_by_epochs(study).query("objective == 'ratio'").pivot(index="seed", columns="epochs", values=measure)
        return paired_difference(own[more], own[fewer])

    return effect


CLAIMS = [
    Claim(
        "2 importance sampling",
        "Reusing samples saves samples",
        "completions to the threshold, 4 epochs ÷ 1",
        lambda study: saved(study, "sequences", "ratio", 4),
        below=1.0,
    ),
    Claim(
        "2 importance sampling",
        "Reusing samples saves time",
        "seconds to the threshold, 4 epochs ÷ 1",
        lambda study: saved(study, "seconds", "ratio", 4),
        below=1.0,
    ),
    Claim(
        "2 importance sampling",
        "The variance of the weights grows with reuse",
        "effective sample size, 8 epochs − 1",
        change("effective", 8, 1),
        below=0.0,
    ),
    Claim(
        "2 importance sampling",
        "and limits how far reuse goes",
        "final accuracy, 8 epochs − 2",
        change("accuracy", 8, 2),
        below=0.0,
    ),
]
