"""The quality of gradients and of advantages at a fixed policy: frames, sentences and figures."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bakeoff.report.figures import colours, laid_out, style
from bakeoff.report.statistics import mean_interval, paired_ratio
from bakeoff.report.study import Study, provenance
from bakeoff.report.tables import by_seed

GRADIENT = {
    "gradient/cosine": "cosine with the policy gradient",
    "gradient/bias": "bias (sine of the mean's angle)",
    "gradient/snr_per_1000_tokens": "signal to noise, 1000 tokens",
    "gradient/snr_per_second": "signal to noise, a second",
}
ADVANTAGE = {
    "advantage/correlation": "correlation with the truth",
    "advantage/rank_accuracy": "pairs ranked right (½ is chance)",
    "advantage/bias": "bias (score)",
}


def quality_table(study: Study, metrics: dict[str, str]) -> pd.DataFrame:
    """A row an arm: mean and 95 % interval over seeds of each metric, columns named by the labels."""
    rows = []
    for name in study.arms:
        row: dict[str, object] = {"method": name, "seeds": int((study.runs["name"] == name).sum())}
        for metric, label in metrics.items():
            mean, low, high = mean_interval(by_seed(study, metric, name))
            row |= {label: mean, f"{label} [95 %]": f"[{low:.3g}, {high:.3g}]"}
        rows.append(row)
    return pd.DataFrame(rows)


def against_best(study: Study, metric: str = "gradient/snr_per_1000_tokens") -> pd.DataFrame:
    """A row an arm, best first: a metric over that of the arm with the highest geometric mean, paired by seed.

    Seeds are policies of their own and differ by factors, which the ratio takes away.
    """
    values = {name: by_seed(study, metric, name) for name in study.arms}
    order = sorted(values, key=lambda name: -float(np.log(values[name]).mean()))
    rows = []
    for name in order:
        mean, low, high = paired_ratio(values[name], values[order[0]])
        rows.append({"method": name, "share": mean, "low": low, "high": high, "told apart": high < 1})
    return pd.DataFrame(rows)


def gradient_verdict(study: Study) -> str:
    """Whose gradient carries most signal a token, and who is biased, in sentences with figures."""
    table = against_best(study)
    less = [
        f"{row['method']} {row['share']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        for _, row in table[table["told apart"]].iterrows()
    ]
    biased = [
        f"{name} ({mean:.2f} [{low:.2f}, {high:.2f}])"
        for name in study.arms
        for mean, low, high in [mean_interval(by_seed(study, "gradient/alignment", name))]
        if high < 1
    ]
    return (
        f"The gradient of {table['method'][0]} has the most signal to noise in 1000 completion tokens. Told apart, "
        f"as a share of it: {', '.join(less) or 'none'}. Told apart from the policy gradient's direction, by a "
        f"cosine with an interval below one: {', '.join(biased) or 'none'}."
    )


def advantage_verdict(study: Study) -> str:
    """Whose advantages follow the truth best, in sentences with figures."""
    found = {name: mean_interval(by_seed(study, "advantage/correlation", name)) for name in study.arms}
    ranked = {name: mean_interval(by_seed(study, "advantage/rank_accuracy", name)) for name in study.arms}
    order = sorted(found, key=lambda name: -found[name][0])
    named = ", ".join(f"{n} {found[n][0]:.2f} [{found[n][1]:.2f}, {found[n][2]:.2f}]" for n in order)
    ceiling = np.mean([by_seed(study, "advantage/correlation_ceiling", name).mean() for name in study.arms])
    pairs = ", ".join(f"{n} {ranked[n][0]:.2f}" for n in order)
    return (
        f"Correlation of a token's advantage with its true one (the truth, estimated twice, would allow "
        f"{ceiling:.2f}): {named}. Share of pairs of tokens ranked right: {pairs}; ½ is chance."
    )


def by_position(study: Study, metric: str) -> pd.DataFrame:
    """A metric by position in the completion: name, seed, position, value; NaN values left out."""
    rows = study.of(f"{metric}_by_position").dropna(subset="value")
    return rows.rename(columns={"step": "position"})[["name", "seed", "position", "value"]].reset_index(drop=True)


def plot_by_position(study: Study) -> Figure:
    """Correlation and rank accuracy at each token of the completion: means over seeds, named beside their ends."""
    style()
    figure, panels = plt.subplots(1, 2, figsize=(10.5, 4.4), layout="constrained")
    palette = colours(study.arms)
    for axes, metric in zip(panels, ("advantage/correlation", "advantage/rank_accuracy"), strict=True):
        data = by_position(study, metric)
        for name in study.arms:
            line = data[data["name"] == name].groupby("position")["value"].mean()
            axes.plot(line.index + 1, line, "o-", ms=4, color=palette[name], label=name)
        axes.set_xlabel("token of the completion")
        axes.set_ylabel(ADVANTAGE[metric])
    panels[1].axhline(0.5, color="0.7", lw=1, zorder=0)
    figure.legend(
        *panels[0].get_legend_handles_labels(), frameon=False, ncols=4, loc="outside lower center", fontsize=9
    )
    figure.suptitle(f"Means over seeds. {provenance(study)}", x=0.01, ha="left", fontsize=10)
    return laid_out(figure)
