"""The predicted memory of each arm over sizes of models."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bakeoff.report.figures import colours, finished, panels
from bakeoff.report.memory import log_bytes, peaks_over, size
from bakeoff.report.pages.critic import WITH, WITHOUT, unanswered
from bakeoff.report.study import Study

DEVICES = (24, 80, 141, 8 * 80)  # GB: memory of common accelerators, and of eight


def actor_weights(study: Study) -> pd.Series:
    """MB of the actor's weights by model, the smallest first."""
    rows = study.of("memory/weights_actor_mb").merge(study.runs[["run", "model"]])
    return rows.groupby("model")["value"].max().sort_values()


def sizes(study: Study) -> pd.DataFrame:
    """The largest peak in MB of each arm (row) with each model (column), the smallest model first."""
    wide = peaks_over(study, "batch.group_size").pivot_table(index="arm", columns="model", values="mb", sort=False)
    return wide[actor_weights(study).index]


def table(study: Study) -> pd.DataFrame:
    """`sizes` as a page shows it."""
    return sizes(study).map(size).reset_index()


def verdict(study: Study) -> str:
    """The share of the largest peak that dropping the critic saves, for each model."""
    frame = sizes(study)
    if not {WITHOUT, WITH} <= set(frame.index):
        return unanswered(WITHOUT, WITH)
    shares = 1 - frame.loc[WITHOUT] / frame.loc[WITH]
    named = ", ".join(f"{share:.0%} with {model}" for model, share in shares.items())
    return f"Predicted share of the largest peak that dropping PPO's separate critic (GRPO instead) saves: {named}."


def plot(study: Study) -> Figure:
    """Largest peaks over the model's weights, a line for each arm; both axes are logarithmic."""
    frame, weights = sizes(study), actor_weights(study)
    figure, (axes,) = panels(1, 4.4)
    palette = colours(list(frame.index))
    for arm, row in frame.iterrows():
        axes.plot(weights, row * 1e6, color=palette[str(arm)], marker="o", ms=4, label=arm)
    for limit in DEVICES:
        axes.axhline(limit * 1e9, color="0.8", lw=1, zorder=0)
        axes.annotate(f"{limit} GB", (float(weights.iloc[0]), limit * 1e9), va="bottom", fontsize=8, color="0.5")
    axes.set_xscale("log")
    log_bytes(axes)
    axes.set_xticks(weights, [str(model) for model in frame.columns], rotation=25, ha="right", fontsize=8)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("largest peak")
    figure.legend(ncols=3, loc="outside lower left")
    return finished(figure, "The largest peak of memory over the model's weights; grey: devices.")
