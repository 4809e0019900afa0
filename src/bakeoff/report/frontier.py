"""What a nat of KL to the start buys: accuracy over KL, for each place of the penalty and each β."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bakeoff.report.figures import laid_out, style
from bakeoff.report.statistics import mean_interval, told_apart
from bakeoff.report.study import ACCURACY, Study, provenance
from bakeoff.report.tables import final

PLACE, BETA = "choice/algorithm/kl_to_reference", "algorithm.kl_to_reference.beta"
KL = "kl/reference_k3_per_sequence"
SHADES = {"in_reward": "#0072B2", "in_loss": "#009E73", "in_reward_adaptive": "#E69F00", "in_loss_iterative": "#CC79A7"}


def frontier(study: Study) -> pd.DataFrame:
    """A row a run: name, seed, place, beta, kl (nats per sequence, at the end) and accuracy."""
    wide = study.params[study.params["key"].isin([PLACE, BETA])].pivot(index="run", columns="key", values="value")
    chosen = study.runs.set_index("run")[["name", "seed"]].join(wide).rename(columns={PLACE: "place", BETA: "beta"})
    ends: list[pd.DataFrame | pd.Series] = [
        pd.Series(final(study, metric).rename(columns={"value": column}).set_index(["name", "seed"])[column])
        for metric, column in ((KL, "kl"), (ACCURACY, "accuracy"))
    ]
    table = chosen.set_index(["name", "seed"]).join(ends).reset_index()
    return table.assign(beta=table["beta"].astype(float))


def at_equal_kl(study: Study, a: str = "in_reward", b: str = "in_loss") -> pd.DataFrame:
    """A row a seed: accuracy of either place at the same KL, and their difference.

    Each place is a line through its βs over log KL; the KL is the middle, in logarithms, of what both lines span.
    """
    rows = []
    for seed, own in frontier(study).groupby("seed"):
        lines = {place: line.sort_values("kl") for place, line in own.groupby("place")}
        if not {a, b} <= set(lines):
            continue
        logs = {place: np.log(lines[place]["kl"].to_numpy()) for place in (a, b)}
        low, high = max(x[0] for x in logs.values()), min(x[-1] for x in logs.values())
        if low > high:
            continue
        at = (low + high) / 2
        heights = [float(np.interp(at, logs[place], lines[place]["accuracy"])) for place in (a, b)]
        rows.append({"seed": seed, "kl": float(np.exp(at)), a: heights[0], b: heights[1]})
    table = pd.DataFrame(rows, columns=["seed", "kl", a, b])
    return table.assign(difference=table[a] - table[b])


def frontier_verdict(study: Study) -> str:
    """Whether the place of the penalty matters at equal KL, and what the βs leave, in sentences with figures."""
    table = at_equal_kl(study)
    spans = []
    for place, own in frontier(study).groupby("place", sort=False):
        means = own.groupby("beta")[["kl", "accuracy"]].mean()
        first, last = means.iloc[0], means.iloc[-1]
        spans.append(
            f"{place}, from β = {means.index[0]:g} to {means.index[-1]:g}: {first['kl']:.2f} to {last['kl']:.2f} nats "
            f"and accuracy {first['accuracy']:.3f} to {last['accuracy']:.3f}"
        )
    text = "What β leaves: " + "; ".join(spans) + ". "
    if len(table) < 2:
        return text + "The two places leave no KL in common, so they cannot be compared at equal KL."
    mean, low, high = difference = mean_interval(table["difference"])
    told = told_apart(difference, "in_reward", "in_loss")
    return text + (
        f"At equal KL ({table['kl'].mean():.2f} nats per sequence), in_reward less in_loss is {mean:+.3f} "
        f"[{low:+.3f}, {high:+.3f}] over {len(table)} seeds: {told}. The same β is another strength in either "
        "place; what compares is the KL that it leaves."
    )


def plot_frontier(study: Study) -> Figure:
    """Final accuracy over final KL: means over seeds with 95 % intervals both ways, a line a place, β beside it."""
    style()
    table = frontier(study)
    figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    for place, own in table.groupby("place", sort=False):
        colour = SHADES.get(str(place), "#888888")
        points = []
        for beta, runs in own.groupby("beta"):
            kl, accuracy = mean_interval(np.log(runs["kl"])), mean_interval(runs["accuracy"])
            x = float(np.exp(kl[0]))
            points.append((x, accuracy[0]))
            axes.plot([x, x], accuracy[1:], color=colour, lw=2, alpha=0.4)
            axes.plot(np.exp(kl[1:]), [accuracy[0]] * 2, color=colour, lw=2, alpha=0.4)
            axes.annotate(f"β {beta:g}", (x, accuracy[0]), (5, 6), textcoords="offset points", fontsize=8, color=colour)
        points.sort()
        axes.plot(*zip(*points, strict=True), "o-", color=colour, ms=6, mec="white", label=str(place).replace("_", " "))
    axes.set_xscale("log")
    axes.set_xlabel("KL to the start at the end (nats per sequence, k3)")
    axes.set_ylabel("held-out greedy accuracy")
    axes.legend(frameon=False, title="place of the penalty")
    axes.set_title(f"Means with 95 % intervals. {provenance(study)}", fontsize=10)
    return laid_out(figure)
