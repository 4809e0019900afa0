"""The predicted memory of PPO and GRPO over the number of completions per prompt: when a group outweighs a critic."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from bakeoff.report.memory import peaks_over, peaks_table, plot_over
from bakeoff.report.pages.critic import WITH, WITHOUT, unanswered
from bakeoff.report.study import Study

__all__ = ["NOTEBOOK", "plot", "table", "verdict"]
NOTEBOOK = "memory"
GROUP = "batch.group_size"
table = peaks_table


def crossing(study: Study) -> pd.Series:
    """For each model the smallest group with which GRPO needs more than PPO with its smallest; NaN if none does."""
    found = {}
    for model, own in peaks_over(study, GROUP).groupby("model", sort=False):
        if {WITH, WITHOUT} <= set(own["arm"]):
            bar = own[own["arm"] == WITH].sort_values("x")["mb"].iloc[0]
            found[model] = own[(own["arm"] == WITHOUT) & (own["mb"] > bar)]["x"].min()
    return pd.Series(found, dtype=float)


def verdict(study: Study) -> str:
    """From which group size on GRPO needs more memory than PPO with the smallest group, for each model."""
    found = crossing(study)
    if found.empty:
        return unanswered(WITHOUT, WITH)
    smallest = int(peaks_over(study, GROUP)["x"].min())
    parts = [f"from {g:.0f} with {m}" if g == g else f"at none of the sizes with {m}" for m, g in found.items()]
    return (
        f"As predicted, GRPO needs more memory than PPO with {smallest} completions per prompt {' and '.join(parts)}: "
        "the group's KV cache then takes the place of the critic."
    )


def plot(study: Study) -> Figure:
    """Largest peaks over the number of completions per prompt."""
    return plot_over(study, GROUP, "completions per prompt")
