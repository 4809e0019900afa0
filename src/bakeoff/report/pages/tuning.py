"""A search over learning rates: the best of equally many trials, and how much a wrong rate costs."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from bakeoff.report.figures import colours, finished, panels
from bakeoff.report.statistics import counted
from bakeoff.report.study import ACCURACY, Study, outcome
from bakeoff.report.tables import by_run, final

RATE = "algorithm.optimizer.lr"
NEAR = 0.02  # of accuracy: one seed cannot distinguish trials that end so near the best


def trials(study: Study) -> pd.DataFrame:
    """A row for each trial: method, lr and accuracy, in order of lr."""
    methods, rates = list(study.runs["algorithm"]), study.param(RATE).astype(float)
    frame = by_run(study, method=methods, lr=rates, accuracy=final(study, ACCURACY))
    return frame[["method", "lr", "accuracy"]].sort_values(["method", "lr"], ignore_index=True)


def search(study: Study) -> pd.DataFrame:
    """A row for each method: number of trials, the best rate, its accuracy, and the range of rates that end NEAR it."""
    rows = []
    for method, own in trials(study).groupby("method", sort=False):
        best = own.iloc[int(own["accuracy"].argmax())]
        near = own[own["accuracy"] >= best["accuracy"] - NEAR]["lr"]
        rows.append((method, len(own), best["lr"], best["accuracy"], near.min(), near.max()))
    return pd.DataFrame(rows, columns=["method", "trials", "lr", "accuracy", "lowest", "highest"])


def table(study: Study) -> pd.DataFrame:
    """`search` as a page shows it."""
    found = search(study)
    return pd.DataFrame(
        {
            "method": found["method"],
            "trials": found["trials"],
            "best learning rate": found["lr"].map("{:.1e}".format),
            "accuracy": found["accuracy"],
            f"rates within {NEAR} of it": [f"{row.lowest:.1e} to {row.highest:.1e}" for row in found.itertuples()],
        }
    )


def trials_table(study: Study) -> pd.DataFrame:
    """`trials` as a page shows it."""
    return trials(study).assign(lr=lambda frame: frame["lr"].map("{:.2e}".format))


def verdict(study: Study) -> str:
    """The best rate of each method and the number of its trials."""
    found = search(study)
    best = "; ".join(
        f"{row['method']} {row['lr']:.1e} ({row['accuracy']:.3f}, {counted(row['trials'], 'trial')})"
        for _, row in found.iterrows()
    )
    unequal = "" if found["trials"].nunique() == 1 else " The methods had different numbers of trials."
    lost = ", ".join(f"{run['name']} ({outcome(run)})" for _, run in study.unfinished.iterrows())
    return (
        f"Best learning rates on the tuning seed: {best}.{unequal} One seed is one sample: rates whose accuracies "
        "differ by less than the noise of a run are equally good." + (f" Unfinished trials: {lost}." if lost else "")
    )


def plot(study: Study) -> Figure:
    """Accuracy over the learning rate, a dot for each trial, a line for each method; the best of each is circled."""
    runs = trials(study)
    figure, (axes,) = panels(1, 3.8)
    palette = colours(list(dict.fromkeys(runs["method"])))
    for method, own in runs.groupby("method", sort=False):
        colour, best = palette[str(method)], own.iloc[int(own["accuracy"].argmax())]
        axes.plot(
            own["lr"], own["accuracy"], "o-", ms=5, lw=1, color=colour, label=f"{method}, {counted(len(own), 'trial')}"
        )
        axes.plot(best["lr"], best["accuracy"], "o", ms=13, mfc="none", mec=colour, mew=1.5)
    axes.set(xscale="log", xlabel="learning rate of the actor", ylabel="held-out greedy accuracy")
    axes.legend()
    seeds = ", ".join(map(str, sorted(set(study.runs["seed"]))))
    return finished(
        figure, f"Accuracy over the learning rate, tuning seed {seeds}; the best trial of each method is circled."
    )
