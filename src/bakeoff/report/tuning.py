"""What a search over learning rates found: the best of equally many trials, and how much a wrong rate costs."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from bakeoff.report.figures import colours, laid_out, style
from bakeoff.report.study import ACCURACY, Study, outcome
from bakeoff.report.tables import final

RATE = "algorithm.optimizer.lr"
NEAR = 0.02  # of accuracy: trials that end so near the best are as good, for all that one seed can say


def trials(study: Study) -> pd.DataFrame:
    """A row a trial: method, lr and accuracy, in order of lr."""
    rates = study.params[study.params["key"] == RATE].set_index("run")["value"].astype(float)
    ends = final(study, ACCURACY).set_index("name")["value"]
    table = pd.DataFrame(
        {
            "method": study.runs["algorithm"],
            "lr": study.runs["run"].map(rates),
            "accuracy": study.runs["name"].map(ends),
        }
    )
    return table.sort_values(["method", "lr"]).reset_index(drop=True)


def search_table(study: Study) -> pd.DataFrame:
    """A row a method: trials, the best rate and its accuracy, and the span of rates that end near the best."""
    rows = []
    for method, own in trials(study).groupby("method", sort=False):
        best = own.sort_values("accuracy").iloc[-1]
        near = own[own["accuracy"] >= best["accuracy"] - NEAR]["lr"]
        rows.append(
            {
                "method": method,
                "trials": len(own),
                "best lr": best["lr"],
                "accuracy": best["accuracy"],
                f"lowest lr within {NEAR}": near.min(),
                f"highest lr within {NEAR}": near.max(),
            }
        )
    return pd.DataFrame(rows)


def tuning_verdict(study: Study) -> str:
    """The best rate of each method, after how many trials, in sentences."""
    table = search_table(study)
    found = "; ".join(
        f"{row['method']} {row['best lr']:.1e} ({row['accuracy']:.3f}, {row['trials']} trials)"
        for _, row in table.iterrows()
    )
    equal = "" if table["trials"].nunique() == 1 else " The methods had different numbers of trials. "
    lost = [f"{run['name']} is {outcome(run)}" for _, run in study.unfinished.iterrows()]
    return (
        f"Best learning rates on the tuning seed: {found}.{equal} One seed is one draw: rates whose accuracies "
        "differ by less than a run's noise are equally good." + (f" Unfinished: {', '.join(lost)}." if lost else "")
    )


def plot_trials(study: Study) -> Figure:
    """Accuracy over learning rate, a dot a trial, a line a method; the best of each is circled."""
    style()
    table = trials(study)
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    palette = colours(list(dict.fromkeys(table["method"])))
    for method, own in table.groupby("method", sort=False):
        colour = palette[str(method)]
        axes.plot(own["lr"], own["accuracy"], "o-", ms=5, lw=1, color=colour, label=f"{method}, {len(own)} trials")
        best = own.sort_values("accuracy").iloc[-1]
        axes.plot(best["lr"], best["accuracy"], "o", ms=13, mfc="none", mec=colour, mew=1.5)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate of the actor")
    axes.set_ylabel("held-out greedy accuracy")
    axes.legend(frameon=False)
    axes.set_title(
        f"One tuning seed ({', '.join(map(str, sorted(set(study.runs['seed']))))}); the best is circled", fontsize=10
    )
    return laid_out(figure)
