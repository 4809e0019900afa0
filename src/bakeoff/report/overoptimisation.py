"""The learned reward against the true one: Gao et al. 2022 (arXiv:2210.10760)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bakeoff.report.figures import curves, laid_out, style
from bakeoff.report.statistics import mean_interval
from bakeoff.report.study import Study, provenance


def overoptimisation(study: Study, window: int = 10) -> pd.DataFrame:
    """A row a run: the true reward (running mean over `window` updates) at the start, at its best, and at the end.

    `lost` is what the end has less than the best: how much more of the learned reward has cost.
    """
    wanted = ["reward/true", "reward/term_learned", "kl/reference_k3_per_sequence"]
    rows = study.of(*wanted)
    table = []
    for (name, seed), run in rows.groupby(["name", "seed"], sort=False):
        wide = run.pivot(index="step", columns="metric", values="value").rolling(window, min_periods=1).mean()
        true = wide["reward/true"].iloc[min(window, len(wide)) - 1 :]
        best = true.index[int(true.to_numpy().argmax())]
        table.append(
            {
                "method": name,
                "seed": seed,
                "true at start": wide["reward/true"].iloc[0],
                "true at best": true.max(),
                "at update": best,
                "KL there": wide.loc[best, "kl/reference_k3_per_sequence"],
                "true at end": true.iloc[-1],
                "KL at end": wide["kl/reference_k3_per_sequence"].iloc[-1],
                "learned at end": wide["reward/term_learned"].iloc[-1],
                "lost": true.max() - true.iloc[-1],
            }
        )
    order = {name: index for index, name in enumerate(study.arms)}
    return pd.DataFrame(table).sort_values(["method", "seed"], key=lambda c: c.map(order) if c.name == "method" else c)


def overoptimisation_verdict(study: Study, window: int = 10) -> str:
    """What became of the true reward under the learned one, in sentences."""
    table, sentences = overoptimisation(study, window), []
    for name in study.arms:
        own = table[table["method"] == name].set_index("seed")
        gained, low, high = mean_interval(own["true at end"] - own["true at start"])
        direction = "rises" if low > 0 else "falls" if high < 0 else "is undecided"
        lost, lost_low, lost_high = mean_interval(own["lost"])
        sentences.append(
            f"Under {name} the true reward {direction} ({gained:+.3f} [{low:+.3f}, {high:+.3f}] from start to end, the "
            f"end {lost:.3f} [{lost_low:.3f}, {lost_high:.3f}] below the best)."
        )
    seeds = table.groupby("method")["seed"].nunique().min()
    return " ".join(sentences) + (
        f" Means over {seeds} seeds with 95 % intervals; the best is the largest of many noisy means, so every run "
        "ends somewhat below it. One task, one model, one reward model."
    )


def reward_model_quality(study: Study) -> pd.DataFrame:
    """Held-out pair accuracy, loss and calibration error of the reward model: one row, since the arms share it."""
    names = {
        "reward_model/heldout_pair_accuracy": "pairs ranked right",
        "reward_model/heldout_loss": "Bradley–Terry loss",
        "reward_model/calibration_error": "calibration error",
    }
    rows = study.of(*names)
    wide = rows.pivot_table(index="run", columns="metric", values="value", aggfunc="first")
    return wide.rename(columns=names).drop_duplicates().reset_index(drop=True)


def plot_overoptimisation(study: Study, smooth: int = 10) -> Figure:
    """The learned and the true reward over √KL to the start, a panel a method: Gao et al. 2022 (arXiv:2210.10760).

    Each seed is a line, a running mean over `smooth` updates. The learned reward is in deviations of the start's
    scores, on the left axis; the true one in [0, 1], on the right.
    """
    style()
    figure, panels = plt.subplots(
        1, len(study.arms), figsize=(4.0 * len(study.arms), 3.6), squeeze=False, sharey=True, layout="constrained"
    )
    learned, true = "reward/term_learned", "reward/true"
    distance = curves(study, "kl/reference_k3_per_sequence", smooth=smooth).rename(columns={"value": "kl"})
    twins = []
    for axes, arm in zip(panels.flat, study.arms, strict=True):
        twin = axes.twinx()
        twins.append(twin)
        for target, metric, colour in ((axes, learned, "#D55E00"), (twin, true, "#0072B2")):
            both = curves(study, metric, smooth=smooth).merge(distance, on=["name", "seed", "x"])
            for _, run in both[both["name"] == arm].groupby("seed"):
                target.plot(np.sqrt(run["kl"].clip(lower=0)), run["value"], color=colour, lw=1.3, alpha=0.8)
        twin.set_ylim(0, 1)
        twin.spines["right"].set_visible(True)
        twin.tick_params(axis="y", colors="#0072B2", labelright=arm == study.arms[-1])
        axes.tick_params(axis="y", colors="#D55E00")
        axes.set_title(arm)
        axes.set_xlabel("√KL to the start (√nats per sequence)")
    panels.flat[0].set_ylabel("learned reward (deviations)", color="#D55E00")
    twins[-1].set_ylabel("true reward", color="#0072B2")
    figure.suptitle(f"Learned and true reward, a line a seed. {provenance(study)}", x=0.01, ha="left", fontsize=12)
    return laid_out(figure)
