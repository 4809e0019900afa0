"""What reusing a rollout saves and what it costs: epochs against completions, time and the variance of the weights."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from bakeoff.measure import TRAINING
from bakeoff.report.across_seeds import threshold, to_threshold
from bakeoff.report.claim import Claim
from bakeoff.report.figures import colours, finished, panels
from bakeoff.report.statistics import Estimate, mean_interval, paired_difference, paired_ratio
from bakeoff.report.study import ACCURACY, Study
from bakeoff.report.tables import FINAL_ACCURACY, by_run, final, grouped, summary

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
    every = grouped(study, *(f"time/{phase}" for phase in TRAINING)).sum()
    return grouped(study, "time/rollout").sum() / every


def runs_by_epochs(study: Study) -> pd.DataFrame:
    """A row for each run: name, seed, objective, epochs and MEASURES; NaN if it never reaches the threshold."""
    level = threshold(study)
    return by_run(
        study,
        objective=study.param(OBJECTIVE),
        epochs=study.param(EPOCHS).astype(int),
        accuracy=final(study, ACCURACY),
        sequences=to_threshold(study, "sequences", level),
        seconds=to_threshold(study, "seconds", level),
        effective=grouped(study, "policy/effective_sample_size").mean(),
        sampling=sampling_share(study),
    )


def table(study: Study) -> pd.DataFrame:
    """A row for each objective and number of epochs: means over seeds, intervals for the accuracy."""
    columns = {
        "accuracy": FINAL_ACCURACY,
        "sequences": "completions to threshold",
        "seconds": "seconds to threshold",
        "effective": "effective sample size",
    }
    return summary(runs_by_epochs(study), {"objective": "objective", "epochs": "epochs"}, columns)


def by_epochs(study: Study, measure: str, objective: str) -> pd.DataFrame:
    """A measure of the runs with an objective: a row for each seed, a column for each number of epochs.

    A run that never reaches the threshold counts with all that it used, a lower bound.
    """
    runs = runs_by_epochs(study).set_index(["name", "seed"])
    for unit in ("sequences", "seconds"):
        runs[unit] = runs[unit].fillna(final(study, f"progress/{unit}"))
    return runs[runs["objective"] == objective].reset_index().pivot(index="seed", columns="epochs", values=measure)


def saved(study: Study, measure: str, objective: str, epochs: int) -> Estimate:
    """A measure with a number of epochs ÷ that with one: geometric mean with 95 % interval, paired by seed."""
    wide = by_epochs(study, measure, objective)
    return paired_ratio(wide[epochs], wide[1]) if {1, epochs} <= set(wide.columns) else Estimate()


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
    figure, all_axes = panels(len(MEASURES), 2.4)
    for axes, (measure, label) in zip(all_axes, MEASURES.items(), strict=True):
        for objective, colour in palette.items():
            own = runs[runs["objective"] == objective]
            means = pd.DataFrame({x: mean_interval(rows[measure]) for x, rows in own.groupby("epochs")}).T
            axes.fill_between(means.index, means[1], means[2], color=colour, alpha=0.15, lw=0)
            axes.plot(means.index, means[0], "o-", color=colour, ms=5, mec="white", label=objective)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set(xlabel="epochs over each rollout", title=label)
    figure.legend(*all_axes[0].get_legend_handles_labels(), title="objective", loc="outside lower right")
    return finished(figure, f"Means with 95 % intervals; threshold {threshold(study):.3f}.", study)


def change(study: Study, measure: str, more: int, fewer: int) -> Estimate:
    """The paired difference of a measure between two numbers of epochs, for samples with unbounded weights."""
    own = by_epochs(study, measure, "ratio")
    return paired_difference(own[more], own[fewer])


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
        lambda study: change(study, "effective", 8, 1),
        below=0.0,
    ),
    Claim(
        "2 importance sampling",
        "and limits how far reuse goes",
        "final accuracy, 8 epochs − 2",
        lambda study: change(study, "accuracy", 8, 2),
        below=0.0,
    ),
]
