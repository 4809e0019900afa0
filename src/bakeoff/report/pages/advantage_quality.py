"""Each estimator's advantages against the true ones, at a fixed policy."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bakeoff.report.claim import Claim, difference
from bakeoff.report.comparisons import family
from bakeoff.report.figures import colours, finished, legend_below, panels, plot_dots
from bakeoff.report.study import Study
from bakeoff.report.tables import estimates, estimates_table

METRICS = {
    "advantage/correlation": "correlation with the truth",
    "advantage/rank_accuracy": "pairs ranked right (½ is chance)",
    "advantage/bias": "bias (score)",
}


table, plot = partial(estimates_table, metrics=METRICS), partial(plot_dots, metrics=METRICS)


def verdict(study: Study) -> str:
    """Whose advantages correlate best with the truth, and the share of pairs that each ranks right."""
    found, ranked = (estimates(study, metric) for metric in ("advantage/correlation", "advantage/rank_accuracy"))
    order = sorted(found, key=lambda name: -found[name].value)
    compared = family(study, "advantage/correlation")
    ceiling = np.mean([each.value for each in estimates(study, "advantage/correlation_ceiling").values()])
    return (
        "Correlation of a token's advantage with its true advantage: "
        + ", ".join(f"{name} {found[name].text()}" for name in order)
        + f"; the upper bound is {ceiling:.2f}, that of two estimates of the truth. Significantly lower than "
        + f"{order[0]}: {', '.join(compared.below(order[0])) or 'none'}. Share of pairs of tokens ranked right: "
        + ", ".join(f"{name} {ranked[name].value:.2f}" for name in order)
        + f"; ½ is chance. {compared.note}"
    )


def by_position(study: Study, metric: str) -> pd.DataFrame:
    """A metric by position in the completion: name, seed, position, value; without NaN."""
    rows = study.of(f"{metric}_by_position").dropna(subset="value")
    return rows.rename(columns={"step": "position"})[["name", "seed", "position", "value"]].reset_index(drop=True)


def plot_by_position(study: Study) -> Figure:
    """Correlation and rank accuracy at each token of the completion, means over seeds."""
    figure, all_axes = panels(2, 3.4)
    for axes, metric in zip(all_axes, ("advantage/correlation", "advantage/rank_accuracy"), strict=True):
        data = by_position(study, metric)
        for name, colour in colours(study.arms).items():
            line = data[data["name"] == name].groupby("position")["value"].mean()
            axes.plot(line.index + 1, line, "o-", ms=4, color=colour, label=name)
        axes.set(xlabel="token of the completion", ylabel=METRICS[metric])
    all_axes[1].axhline(0.5, color="0.7", lw=1, zorder=0)
    legend_below(figure, all_axes)
    return finished(figure, "Quality of advantages at each token of the completion: means over seeds.", study)


CLAIMS = [
    Claim(
        "9 GRPO",
        "A critic's estimate is hard for a language model: its advantages follow the truth less than the group's",
        "correlation with the truth, critic − group mean",
        difference("baseline_critic", "baseline_group_mean", "advantage/correlation"),
        below=0.0,
    ),
]
