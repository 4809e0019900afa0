"""The predicted memory of PPO and GRPO over the number of completions per prompt: when a group outweighs a critic."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from bakeoff.report.figures import colours, finished, panels
from bakeoff.report.memory import log_bytes, peaks_over, peaks_table
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
    """Largest peaks over the number of completions per prompt, a line for each arm and model."""
    table = peaks_over(study, GROUP)
    figure, (axes,) = panels(1, 3.8)
    palette = colours(list(dict.fromkeys(table["arm"])))
    styles = dict(zip(dict.fromkeys(table["model"]), ["-", "--", ":", "-."], strict=False))
    for (arm, model), rows in table.groupby(["arm", "model"], sort=False):
        line, colour = rows.sort_values("x"), palette[str(arm)]
        axes.plot(
            line["x"], line["mb"] * 1e6, styles[str(model)], color=colour, marker="o", ms=4, label=f"{arm}, {model}"
        )
    axes.set_xscale("log", base=2)
    log_bytes(axes)
    ticks = sorted(set(table["x"]))
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.set(xlabel="completions per prompt", ylabel="largest peak")
    figure.legend(ncols=2, loc="outside lower left")
    return finished(figure, "The largest peak of memory over the completions per prompt.")
