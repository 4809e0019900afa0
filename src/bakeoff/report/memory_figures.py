"""The figures of the memory page."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bakeoff.measure import TRAINING
from bakeoff.report.figures import colours, laid_out, stacked_bars, style
from bakeoff.report.memory import GIGA, actor_weights, at_peak, largest_peaks, ledger, over, pareto, sizes
from bakeoff.report.study import Study, provenance

ROLE_SHADES = {
    "actor": "#0072B2",
    "critic": "#E69F00",
    "reference": "#999999",
    "reward_model": "#CC79A7",
    "data": "#DDDDDD",
}
KIND_SHADES = {
    "parameters": "#0072B2",
    "gradients": "#56B4E9",
    "optimizer": "#332288",
    "activations": "#D55E00",
    "logits": "#E69F00",
    "kv_cache": "#009E73",
    "other": "#DDDDDD",
    "remainder": "#BBBBBB",
}


def scaled(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """MB, or GB where the largest column sums to tens of thousands of MB; and the unit."""
    return (table / 1000, "GB") if table.sum().max() > GIGA else (table, "MB")


def plot_at_peak(study: Study, by: str) -> Figure:
    """Stacked bars of each arm's largest peak, by `role` or `kind`; the phase is beside the arm's name."""
    table, unit = scaled(at_peak(study, by))
    phase = largest_peaks(study).set_index("name")["phase"]
    table.columns = [f"{arm}\n{phase[arm].replace('_', ' ')}" for arm in table.columns]
    shades = ROLE_SHADES if by == "role" else KIND_SHADES
    return stacked_bars(table, shades, f"{unit} at the peak of the phase below each name, by {by}")


def plot_phases(study: Study) -> Figure:
    """A panel an arm: what is held through the phases of an update, stacked by kind at each phase's peak."""
    style()
    cells = (
        ledger(study).groupby(["name", "phase", "kind", "seed"])["mb"].sum().groupby(["name", "phase", "kind"]).mean()
    )
    order = [phase for phase in TRAINING if phase in cells.index.get_level_values("phase")]
    kinds = [kind for kind in KIND_SHADES if kind in cells.index.get_level_values("kind")]
    columns = min(3, len(study.arms))
    rows = -(-len(study.arms) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(3.4 * columns, 2.4 * rows + 0.8), squeeze=False, sharey=True, layout="constrained"
    )
    scale, unit = (1000, "GB") if cells.groupby(["name", "phase"]).sum().max() > GIGA else (1, "MB")
    for axes in panels.flat[len(study.arms) :]:
        axes.set_visible(False)
    for axes, arm in zip(panels.flat, study.arms, strict=False):
        own = cells[arm].unstack("kind").reindex(order).reindex(columns=kinds).dropna(how="all").fillna(0) / scale
        bottom = np.zeros(len(own))
        for kind in kinds:
            axes.bar(own.index, own[kind], bottom=bottom, color=KIND_SHADES[kind], label=kind, width=0.9)
            bottom += own[kind].to_numpy()
        axes.set_title(arm, fontsize=10)
        axes.set_xticks(range(len(own)), [p.replace("_", "\n") for p in own.index], fontsize=7)
    figure.supylabel(f"{unit} at the peak of each phase", fontsize=10)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, [text.replace("_", " ") for text in labels], frameon=False, ncols=4, loc="outside lower center"
    )
    return laid_out(figure)


def plot_pareto(study: Study) -> Figure:
    """Peak memory against final held-out accuracy: means with 95 % intervals over seeds; the front as a line."""
    style()
    table = pareto(study).sort_values("mb")
    palette = colours(study.arms)
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    front = table[table["front"]]
    axes.plot(front["mb"], front["accuracy"], color="0.6", lw=1, ls="--", zorder=0)
    for _, row in table.iterrows():
        colour = palette[row["name"]]
        axes.plot([row["mb"]] * 2, [row["low"], row["high"]], color=colour, lw=2, alpha=0.5)
        axes.plot(row["mb"], row["accuracy"], "o", color=colour, ms=7, mec="white")
        text = f"{row['name']} {row['accuracy']:.3f}"
        axes.annotate(
            text,
            (row["mb"], np.nanmax([row["high"], row["accuracy"]])),
            (2, 4),
            textcoords="offset points",
            rotation=50,
            fontsize=8,
            color=colour,
        )
    axes.margins(x=0.15)
    values = table[["low", "accuracy", "high"]].to_numpy()  # one seed has no interval
    low, high = float(np.nanmin(values)), float(np.nanmax(values)) + 0.01
    axes.set_ylim(low - 0.1 * (high - low), high + 0.7 * (high - low))  # names stand above their intervals
    axes.set_yticks([tick for tick in axes.get_yticks() if low - 0.1 * (high - low) <= tick <= 1])
    axes.set_xlabel("peak memory (MB)")
    axes.set_ylabel("held-out greedy accuracy")
    axes.set_title(f"Means with 95 % intervals; dashed: the front. {provenance(study)}", fontsize=10)
    return laid_out(figure)


def plain_log(axes: Axes) -> None:
    """A logarithmic y axis with numbers as a person writes them."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def plot_over(study: Study, key: str, label: str) -> Figure:
    """Largest peaks over a numeric parameter (`batch.group_size`), a line for each arm and model."""
    style()
    table = over(study, key)
    scale, unit = (1000, "GB") if table["mb"].max() > GIGA else (1, "MB")
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    palette = colours(list(dict.fromkeys(table["arm"])))
    styles = dict(zip(dict.fromkeys(table["model"]), ["-", "--", ":", "-."], strict=False))
    for (arm, model), rows in table.groupby(["arm", "model"], sort=False):
        line, colour = rows.sort_values("x"), palette[str(arm)]
        axes.plot(line["x"], line["mb"] / scale, styles[str(model)], color=colour, marker="o", ms=4)
        axes.annotate(
            f" {arm}, {model}",
            (line["x"].iloc[-1], line["mb"].iloc[-1] / scale),
            va="center",
            fontsize=8,
            color=colour,
        )
    axes.set_xscale("log", base=2)
    plain_log(axes)
    axes.set_xticks(sorted(set(table["x"])), [f"{x:g}" for x in sorted(set(table["x"]))])
    axes.set_xlim(right=max(table["x"]) * 4)
    axes.set_xlabel(label)
    axes.set_ylabel(f"largest peak ({unit})")
    return laid_out(figure)


def plot_sizes(study: Study) -> Figure:
    """Largest peaks over the model's weights, a line an arm; both axes logarithmic."""
    style()
    table = sizes(study)
    billions = actor_weights(study) / 4000  # float32
    figure, axes = plt.subplots(figsize=(7.2, 5.0), layout="constrained")
    palette = colours(list(table.index))
    for arm, row in table.iterrows():
        axes.plot(billions, row, color=palette[str(arm)], marker="o", ms=4, label=arm)
    for limit in (24, 80, 141, 8 * 80):
        axes.axhline(limit, color="0.8", lw=1, zorder=0)
        axes.annotate(f"{limit} GB", (float(billions.iloc[0]), limit), va="bottom", fontsize=8, color="0.5")
    axes.set_xscale("log")
    plain_log(axes)
    axes.set_xticks(billions, [str(model) for model in table.columns], rotation=30, ha="right", fontsize=8)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("largest peak (GB)")
    axes.legend(frameon=False, fontsize=9)
    return laid_out(figure)
