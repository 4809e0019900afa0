"""What reusing a rollout saves and what it costs: epochs against completions, time and the variance of the weights."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bakeoff.measure import TRAINING
from bakeoff.report.across_seeds import restricted, threshold, to_threshold
from bakeoff.report.claim import Claim
from bakeoff.report.comparisons import family
from bakeoff.report.figures import colours, finished, panels
from bakeoff.report.statistics import (
    FEWEST,
    Estimate,
    bootstrapped,
    counted,
    paired_difference,
    ratio_of_means,
    resampled,
)
from bakeoff.report.study import SAMPLED, Study
from bakeoff.report.tables import FINAL_SAMPLED, by_run, final, grouped, summary

MEASURE = SAMPLED  # what --detect is about
OBJECTIVE, EPOCHS = "choice/algorithm/objective", "algorithm.optimizer.epochs"
STEPS = ("actor_update", "fisher_product", "critic_update")  # phases whose time grows with the epochs
MEASURES = {
    "accuracy": "held-out sampled accuracy",
    "sequences": "completions to the threshold, or in all",
    "seconds": "training seconds to the threshold, or in all",
    "effective": "effective sample size (share)",
    "sampling": "share of training time in sampling",
}


def seconds_of(study: Study, *phases: str) -> pd.Series:
    """Seconds of some phases, by name and seed: the sum over a run's updates."""
    return grouped(study, *(f"time/{phase}" for phase in phases)).sum()


def sampling_share(study: Study) -> pd.Series:
    """The share of a run's training time that sampling takes, by name and seed."""
    return seconds_of(study, "rollout") / seconds_of(study, *TRAINING)


def runs_by_epochs(study: Study) -> pd.DataFrame:
    """A row for each run: name, seed, objective, epochs, MEASURES, whether it reached the threshold, and its seconds
    in steps.
    """
    level = threshold(study, SAMPLED)
    return by_run(
        study,
        objective=study.param(OBJECTIVE),
        epochs=study.param(EPOCHS).astype(int),
        accuracy=final(study, SAMPLED),
        sequences=restricted(study, "sequences", level, SAMPLED),
        seconds=restricted(study, "seconds", level, SAMPLED),
        reached=to_threshold(study, "sequences", level, SAMPLED).notna(),
        effective=grouped(study, "policy/effective_sample_size").mean(),
        sampling=sampling_share(study),
        steps=seconds_of(study, *STEPS),
    )


def table(study: Study) -> pd.DataFrame:
    """A row for each objective and number of epochs: means over seeds, intervals for the accuracy."""
    columns = {
        "accuracy": FINAL_SAMPLED,
        "reached": "share of runs that reach the threshold",
        "sequences": "completions until then, or in all",
        "seconds": "seconds until then, or in all",
        "effective": "effective sample size",
    }
    return summary(runs_by_epochs(study), {"objective": "objective", "epochs": "epochs"}, columns)


def by_epochs(study: Study, measure: str, objective: str) -> pd.DataFrame:
    """A measure of the runs with an objective: a row for each seed, a column for each number of epochs."""
    runs = runs_by_epochs(study)
    return runs[runs["objective"] == objective].pivot(index="seed", columns="epochs", values=measure)


def saved(study: Study, measure: str, objective: str, epochs: int) -> Estimate:
    """The restricted mean of a measure with a number of epochs ÷ that with one."""
    wide = by_epochs(study, measure, objective)
    return ratio_of_means(wide[epochs], wide[1]) if {1, epochs} <= set(wide.columns) else Estimate()


def break_even(study: Study, objective: str, epochs: int) -> Estimate:
    """The share of an update's time, with one epoch, above which the epochs save time by saving completions: ours.

    With the completions that they need (r times those of one epoch) and the seconds that their steps take (k times),
    an update whose other work takes the share f costs time as r (f + k (1 − f)), which is below one above
    f = (r k − 1)/(r (k − 1)). It is 1 where the epochs save no completions, so that no share is enough, and 0 where
    they save time at any share.
    """
    needed, steps = (by_epochs(study, measure, objective) for measure in ("sequences", "steps"))
    if not {1, epochs} <= set(needed.columns):
        return Estimate()
    values = np.stack([wide[[epochs, 1]].to_numpy(float) for wide in (needed, steps)])  # [2, seeds, 2]
    seeds = np.arange(values.shape[1])
    means = values[:, resampled(seeds, np.random.default_rng(0))].mean(2)
    r, k = means[..., 0] / means[..., 1]
    return bootstrapped(np.clip((r * k - 1) / (r * (k - 1)), 0, 1), [seeds])


def verdict(study: Study) -> str:
    """With how many epochs accuracy is highest, what they save, and from which share of sampling on that saves time."""
    level, runs, parts = threshold(study, SAMPLED), runs_by_epochs(study), []
    for objective in dict.fromkeys(runs["objective"]):
        own = runs[runs["objective"] == objective].groupby("epochs")
        means, reached = own[["accuracy", "effective"]].mean(), own["reached"].agg(["sum", "size"])
        best, most = int(means["accuracy"].idxmax()), int(means.index[-1])
        text = (
            f"With the objective `{objective}`, sampled accuracy is highest with {counted(best, 'epoch')} "
            f"({means['accuracy'][best]:.3f}; with 1: {means['accuracy'].iloc[0]:.3f}, with {most}: "
            f"{means['accuracy'].iloc[-1]:.3f})"
        )
        if best > 1:
            counts = " and ".join(f"{reached['sum'][n]} of {reached['size'][n]} with {n}" for n in (best, 1))
            text += (
                f"; {counts} reach {level:.3f}, the former with "
                f"{saved(study, 'sequences', objective, best).text()} times the completions of the latter; that saves "
                "time where sampling and scoring take more than "
                f"{break_even(study, objective, best).text()} of an update with one epoch, of which sampling takes "
                f"{runs['sampling'][(runs['objective'] == objective) & (runs['epochs'] == 1)].mean():.2f} here"
            )
        effective = means["effective"]
        parts.append(
            f"{text}; the effective sample size falls from {effective.iloc[0]:.3f} to {effective.iloc[-1]:.3f}."
        )
    parts.append(
        "A run that never reaches the threshold counts with its whole budget: means are restricted to it. The interval "
        f"of a share is a bootstrap over seeds, stated from {FEWEST} seeds on. Final accuracy: "
        f"{family(study, SAMPLED).note}"
    )
    return " ".join(parts)


def plot(study: Study) -> Figure:
    """A panel for each measure over the epochs: means and ranges over seeds, a line for each objective."""
    runs = runs_by_epochs(study)
    palette, ticks = colours(list(dict.fromkeys(runs["objective"]))), sorted(set(runs["epochs"]))
    figure, all_axes = panels(len(MEASURES), 2.4)
    for axes, (measure, label) in zip(all_axes, MEASURES.items(), strict=True):
        for objective, colour in palette.items():
            own = runs[runs["objective"] == objective].groupby("epochs")[measure].agg(["mean", "min", "max"])
            axes.fill_between(own.index, own["min"], own["max"], color=colour, alpha=0.15, lw=0)
            axes.plot(own.index, own["mean"], "o-", color=colour, ms=5, mec="white", label=objective)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set(xlabel="epochs over each rollout", title=label)
    figure.legend(*all_axes[0].get_legend_handles_labels(), title="objective", loc="outside lower right")
    return finished(
        figure, f"Reuse of a rollout: means and ranges over seeds; threshold {threshold(study, SAMPLED):.3f}.", study
    )


def change(study: Study, measure: str, more: int, fewer: int) -> Estimate:
    """The paired difference of a measure between two numbers of epochs, for samples with unbounded weights."""
    own = by_epochs(study, measure, "ratio")
    return paired_difference(own[more], own[fewer], study.step(SAMPLED) if measure == "accuracy" else 0.0)


def clipped(study: Study, epochs: int) -> Estimate:
    """The paired difference of final sampled accuracy between clipped and unbounded weights, at a number of epochs."""
    clip, ratio = (by_epochs(study, "accuracy", objective)[epochs] for objective in ("clip", "ratio"))
    return paired_difference(clip, ratio, study.step(SAMPLED))


STEP = "2 importance sampling"
CLAIMS = [
    Claim(
        STEP,
        "Reusing samples saves samples, with the clip",
        "completions until the threshold or in all, 4 epochs ÷ 1, clip",
        lambda study: saved(study, "sequences", "clip", 4),
        below=1.0,
    ),
    Claim(
        STEP,
        "Reuse with unbounded weights saves samples too",
        "completions until the threshold or in all, 4 epochs ÷ 1, no clip",
        lambda study: saved(study, "sequences", "ratio", 4),
        below=1.0,
    ),
    Claim(
        STEP,
        "It saves time where sampling takes more than this share",
        "break-even share of sampling and scoring in an update with one epoch, 4 epochs, clip",
        lambda study: break_even(study, "clip", 4),
    ),
    Claim(
        STEP,
        "The variance of the weights grows with reuse",
        "effective sample size, 8 epochs − 1, no clip",
        lambda study: change(study, "effective", 8, 1),
        below=0.0,
    ),
    Claim(
        STEP,
        "The variance of the weights limits how far reuse goes",
        "final sampled accuracy, 8 epochs − 2, no clip",
        lambda study: change(study, "accuracy", 8, 2),
        below=0.0,
    ),
    Claim(
        STEP,
        "With clipped weights reuse goes further",
        "final sampled accuracy at 8 epochs, clip − no clip",
        lambda study: clipped(study, 8),
        above=0.0,
    ),
]
