"""What using a rollout several times saves, and what it costs: epochs against samples, time and variance."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from bakeoff.measure import TRAINING
from bakeoff.report.across_seeds import threshold, to_threshold
from bakeoff.report.figures import laid_out, style
from bakeoff.report.statistics import mean_interval, paired_ratio
from bakeoff.report.study import ACCURACY, Study, provenance
from bakeoff.report.tables import final

OBJECTIVE, EPOCHS = "choice/algorithm/objective", "algorithm.optimizer.epochs"
SHADES = {"ratio": "#D55E00", "clip": "#0072B2"}
MEASURES = {
    "accuracy": "held-out greedy accuracy",
    "sequences": "completions to the threshold",
    "seconds": "training seconds to the threshold",
    "effective": "effective sample size (share)",
    "sampling": "share of training time in sampling",
}


def sampling_share(study: Study) -> pd.DataFrame:
    """The share of a run's training time that the rollout takes: name, seed, value."""
    names = [f"time/{phase}" for phase in TRAINING]
    rows = study.of(*names)
    total = rows.groupby(["name", "seed"], sort=False)["value"].sum()
    rollout = rows[rows["metric"] == "time/rollout"].groupby(["name", "seed"], sort=False)["value"].sum()
    return (rollout / total).rename("value").reset_index()


def reuse(study: Study) -> pd.DataFrame:
    """A row a run: name, seed, objective, epochs and the measures, of which NaN is what was never reached."""
    wide = study.params[study.params["key"].isin([OBJECTIVE, EPOCHS])].pivot(index="run", columns="key", values="value")
    table = study.runs.set_index("run")[["name", "seed"]].join(wide)
    table = table.rename(columns={OBJECTIVE: "objective", EPOCHS: "epochs"}).astype({"epochs": int})
    table = table.set_index(["name", "seed"])
    level = threshold(study)
    ess = study.of("policy/effective_sample_size").groupby(["name", "seed"])["value"]
    table["accuracy"] = final(study, ACCURACY).set_index(["name", "seed"])["value"]
    table["sequences"] = to_threshold(study, "sequences", level).set_index(["name", "seed"])["x"]
    table["seconds"] = to_threshold(study, "seconds", level).set_index(["name", "seed"])["x"]
    table["effective"] = ess.mean()
    table["sampling"] = sampling_share(study).set_index(["name", "seed"])["value"]
    return table.reset_index()


def saved(study: Study, measure: str, objective: str, more: int, fewer: int = 1) -> tuple[float, float, float]:
    """The ratio of a measure with `more` epochs to that with `fewer`, with 95 % interval, paired by seed in logarithms.

    A run that never reaches the threshold counts with all that it used, the least that it would have needed.
    """
    table = reuse(study)
    for unit in ("sequences", "seconds"):
        used = final(study, f"progress/{unit}").set_index(["name", "seed"])["value"]
        table[unit] = table[unit].fillna(
            pd.Series(used[list(zip(table["name"], table["seed"], strict=True))].to_numpy())
        )
    own = table[table["objective"] == objective].pivot(index="seed", columns="epochs", values=measure)
    if not {more, fewer} <= set(own.columns):
        return float("nan"), float("nan"), float("nan")
    return paired_ratio(own[more], own[fewer])


def reuse_verdict(study: Study) -> str:
    """How many completions and seconds reuse saves, and where it ends, in sentences with figures."""
    level, table = threshold(study), reuse(study)
    most = int(table["epochs"].max())
    parts = []
    for objective in dict.fromkeys(table["objective"]):
        means = table[table["objective"] == objective].groupby("epochs")[["accuracy", "effective"]].mean()
        best = int(means["accuracy"].idxmax())
        sequences, low, high = saved(study, "sequences", objective, best)
        seconds, fast, slow = saved(study, "seconds", objective, best)
        parts.append(
            f"{objective}: the highest mean is with {best} epochs ({means['accuracy'][best]:.3f}; with 1: "
            f"{means['accuracy'].iloc[0]:.3f}, with {most}: {means['accuracy'].iloc[-1]:.3f})"
            + (
                f", which reach {level:.3f} with {sequences:.2f} [{low:.2f}, {high:.2f}] of the completions and "
                f"{seconds:.2f} [{fast:.2f}, {slow:.2f}] of the time"
                if best > 1
                else ""
            )
            + f"; the effective sample size goes from {means['effective'].iloc[0]:.3f} to "
            f"{means['effective'].iloc[-1]:.3f}"
        )
    return "Using each rollout several times. " + ". ".join(parts) + "."


def plot_reuse(study: Study) -> Figure:
    """A panel a measure, over the epochs: means with 95 % intervals, a line an objective."""
    style()
    table = reuse(study)
    figure, panels = plt.subplots(2, 3, figsize=(10.5, 6.0), layout="constrained")
    for axes, (measure, label) in zip(panels.flat, MEASURES.items(), strict=False):
        for objective, own in table.groupby("objective", sort=False):
            colour = SHADES.get(str(objective), "#888888")
            points = pd.DataFrame(
                [(epochs, *mean_interval(runs[measure])) for epochs, runs in own.groupby("epochs")],
                columns=["x", "mean", "low", "high"],
            )
            axes.fill_between(points["x"], points["low"], points["high"], color=colour, alpha=0.15, lw=0)
            axes.plot(points["x"], points["mean"], "o-", color=colour, ms=5, mec="white", label=str(objective))
        axes.set_xscale("log", base=2)
        ticks = sorted(set(table["epochs"]))
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xlabel("epochs over each rollout")
        axes.set_title(label, fontsize=10)
    panels.flat[-1].set_visible(False)
    panels.flat[0].legend(frameon=False, title="objective")
    figure.suptitle(
        f"Means with 95 % intervals; the threshold is {threshold(study):.3f}. {provenance(study)}",
        x=0.01,
        ha="left",
        fontsize=10,
    )
    return laid_out(figure)
