"""The figures of a report: one style, and a method has the same colour everywhere."""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bakeoff.report.statistics import mean_interval
from bakeoff.report.study import Study
from bakeoff.report.tables import ACCURACY, by_seed, phases

# Okabe and Ito's palette, told apart with any kind of colour vision.
COLOURS = {"ppo": "#0072B2", "ppo_kl": "#E69F00", "grpo": "#009E73"}
OTHERS = ["#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442"]
AXES = {"update": "updates", "sequences": "sequences", "tokens": "completion tokens", "seconds": "training seconds"}


def style() -> None:
    """Sets the one style: readable in print and on a phone."""
    sns.set_theme(context="notebook", style="ticks")
    plt.rcParams.update(
        {"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left", "axes.titlesize": 12}
    )


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each arm; a method that is known keeps its own."""
    spare = iter(OTHERS * 10)
    return {name: COLOURS.get(name) or next(spare) for name in names}


def curves(study: Study, metric: str, against: str = "update", smooth: int = 1) -> pd.DataFrame:
    """A metric over x for every run, on a grid that the runs of an arm share: name, seed, x, value.

    `against` is update, sequences, tokens or seconds; values are running means over `smooth` points.
    """
    wanted = study.metrics[study.metrics["metric"] == metric].sort_values("step")
    frames = []
    for (name, seed), rows in wanted.groupby(["name", "seed"], sort=False):
        values = rows["value"].rolling(smooth, min_periods=1).mean().to_numpy()
        x = rows["step"].to_numpy(dtype=float)
        if against != "update":
            counted = study.metrics[study.metrics["metric"] == f"progress/{against}"]
            counted = counted[(counted["name"] == name) & (counted["seed"] == seed)].sort_values("step")
            x = np.interp(x, [0, *counted["step"]], [0.0, *counted["value"]])
        frames.append(pd.DataFrame({"name": name, "seed": seed, "x": x, "value": values}))
    return pd.concat(frames, ignore_index=True)


def band(axes: Axes, data: pd.DataFrame, colour: str, label: str) -> None:
    """The mean over seeds of curves (seed, x, value) as a line, their range as a band."""
    low = data.groupby("seed")["x"].min().max()
    high = data.groupby("seed")["x"].max().min()
    grid = np.linspace(low, high, 200)
    lines = np.array([np.interp(grid, run["x"], run["value"]) for _, run in data.groupby("seed")])
    axes.plot(grid, lines.mean(0), color=colour, lw=2, label=label)
    axes.fill_between(grid, lines.min(0), lines.max(0), color=colour, alpha=0.18, lw=0)


def plot_curves(
    study: Study, metric: str, title: str, unit: str, against: Iterable[str] = ("update",), smooth: int = 1
) -> Figure:
    """One panel for each x axis; lines are means over seeds, bands their range. The figure is closed."""
    style()
    against = list(against)
    columns = min(2, len(against))
    rows = -(-len(against) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(5.2 * columns, 3.6 * rows), squeeze=False, sharey=True, layout="constrained"
    )
    palette = colours(study.arms)
    for axes, name in zip(panels.flat, against, strict=False):
        data = curves(study, metric, name, smooth)
        for arm in study.arms:
            band(axes, data[data["name"] == arm], palette[arm], arm)
        axes.set_xlabel(AXES[name])
        axes.set_xlim(left=0)
    for row in panels:
        row[0].set_ylabel(unit)
    panels.flat[0].legend(frameon=False)
    seeds = study.runs.groupby("name")["seed"].nunique().min()
    figure.suptitle(f"{title}: mean and range over {seeds} seeds", x=0.01, ha="left", fontsize=12)
    plt.close(figure)  # a notebook shows what a cell returns, and would show open figures once more
    return figure


def plot_final(study: Study, metric: str = ACCURACY, label: str = "held-out greedy accuracy") -> Figure:
    """Every run as a dot, the mean with its 95 % interval beside it."""
    style()
    figure, axes = plt.subplots(figsize=(6.4, 0.7 * len(study.arms) + 1.4), layout="constrained")
    palette = colours(study.arms)
    for row, name in enumerate(reversed(study.arms)):
        values = by_seed(study, metric, name)
        mean, low, high = mean_interval(values)
        axes.plot([low, high], [row, row], color=palette[name], lw=3, alpha=0.5, solid_capstyle="round")
        axes.plot(values, np.full(len(values), row), "o", color=palette[name], ms=5, mec="white", mew=0.7)
        axes.plot(mean, row, "|", color="black", ms=16, mew=2)
        axes.annotate(f"{mean:.3f}", (mean, row), (0, 10), textcoords="offset points", ha="center", fontsize=10)
    axes.set_yticks(range(len(study.arms)), list(reversed(study.arms)))
    axes.set_ylim(-0.5, len(study.arms) - 0.3)
    axes.set_xlabel(f"{label} (dots: seeds; bar: mean and 95 % interval)")
    plt.close(figure)
    return figure


def plot_phases(study: Study, prefix: str, label: str, stacked: bool) -> Figure:
    """`time` as stacked bars (phases add up) or `memory` as grouped bars (peaks do not)."""
    style()
    table = phases(study, prefix)
    if stacked:
        figure, axes = plt.subplots(figsize=(7.2, 0.6 * len(study.arms) + 1.8), layout="constrained")
        left = np.zeros(len(study.arms))
        shades = sns.color_palette("crest", len(table))
        for shade, (phase, row) in zip(shades, table.fillna(0).iterrows(), strict=True):
            axes.barh(study.arms, row, left=left, color=shade, label=str(phase).replace("_", " "), edgecolor="white")
            left += row.to_numpy()
        for name, total in zip(study.arms, left, strict=True):
            axes.annotate(f" {total:.2f}", (total, name), va="center", fontsize=10)
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.22 - 0.1 / len(study.arms)))
        plt.close(figure)
        return figure
    figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    width = 0.8 / len(study.arms)
    palette = colours(study.arms)
    for index, name in enumerate(study.arms):
        at = np.arange(len(table)) + (index - (len(study.arms) - 1) / 2) * width
        bars = axes.bar(at, table[name].fillna(0), width, color=palette[name], label=name)
        axes.bar_label(bars, labels=[f"{v:.0f}" if v == v else "" for v in table[name]], fontsize=8, padding=1)
    axes.set_xticks(np.arange(len(table)), [str(phase).replace("_", "\n") for phase in table.index])
    axes.set_ylabel(label)
    axes.legend(frameon=False)
    plt.close(figure)
    return figure
