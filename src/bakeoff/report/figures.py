"""The figures of a report: one style, and a method has the same colour everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from bakeoff.paths import CONF
from bakeoff.report.statistics import mean_interval
from bakeoff.report.study import ACCURACY, Study, provenance
from bakeoff.report.tables import by_seed, phases

# Okabe and Ito's palette, told apart with any kind of colour vision: for the methods that most studies compare.
COLOURS = {
    "ppo": "#0072B2",
    "ppo_kl": "#E69F00",
    "grpo": "#009E73",
    "trpo": "#000000",
    "reinforce": "#D55E00",
    "rloo": "#CC79A7",
    "dapo": "#56B4E9",
    "reinforce_baseline": "#882255",
    "ppo_penalty": "#44AA99",
    "grpo_process": "#999933",
}
# What an arm of sweeps/critic.yaml and its relatives is: a method, and how it is told apart from it.
COLOURS |= {
    "critic_none": COLOURS["grpo"],
    "critic_separate": COLOURS["ppo"],
    "critic_shared": "#CC79A7",
    "critic_adapter": "#56B4E9",
    "grpo_lora": "#117733",
    "ppo_lora": "#332288",
    "grpo_checkpointing": "#999933",
    "ppo_checkpointing": "#6699CC",
}
# Of the other studies: the arm's method, and shades of it.
COLOURS |= {
    "baseline_none": COLOURS["reinforce"],
    "baseline_batch_mean": COLOURS["reinforce_baseline"],
    "baseline_group_mean": COLOURS["grpo"],
    "baseline_leave_one_out": COLOURS["rloo"],
    "baseline_critic": "#332288",
    "grpo_outcome": COLOURS["grpo"],
    "ppo_outcome": COLOURS["ppo"],
    "ppo_process": "#56B4E9",
    **dict.fromkeys(("clip_0_1", "clip_0_2", "clip_0_4"), COLOURS["ppo"]),
    **dict.fromkeys(("adaptive_0_002", "adaptive_0_006", "adaptive_0_018"), COLOURS["ppo_kl"]),
    **dict.fromkeys(("penalty_0_1", "penalty_1", "penalty_10"), COLOURS["ppo_penalty"]),
}
# Eighteen colours cannot all be told apart: the others share shades, and figures name every line.
OTHERS = ["#882255", "#44AA99", "#999933", "#332288", "#AA4499", "#117733", "#DDCC77", "#661100", "#6699CC", "#888888"]
MANY = 6  # arms, above which each has a panel of its own
AXES = {"update": "updates", "sequences": "sequences", "tokens": "completion tokens", "seconds": "training seconds"}


def style() -> None:
    """Sets the one style: readable in print and on a phone."""
    sns.set_theme(context="notebook", style="ticks")
    plt.rcParams.update(
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 12,
            "svg.hashsalt": "bakeoff",  # the same figure, the same bytes
        }
    )


def laid_out(figure: Figure) -> Figure:
    """The figure, laid out once: a page draws it several times, and would lay it out each time.

    Closed, since a notebook shows what a cell returns, and would show open figures once more.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    plt.close(figure)
    return figure


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each arm; a method that is known keeps its own."""
    others = [path.stem for path in sorted((CONF / "algorithm").glob("*.yaml")) if path.stem not in COLOURS]
    fixed = COLOURS | {name: OTHERS[index % len(OTHERS)] for index, name in enumerate(others)}
    spare = iter(OTHERS[::-1] * 10)
    return {name: fixed.get(name) or fixed.get(name.split()[0]) or next(spare) for name in names}


def curves(study: Study, metric: str, against: str = "update", smooth: int = 1) -> pd.DataFrame:
    """A metric over x for every run, on a grid that the runs of an arm share: name, seed, x, value.

    `against` is update, sequences, tokens or seconds; values are running means over `smooth` points.
    """
    rows = study.of(metric).reset_index(drop=True)
    x, value = rows["step"].to_numpy(float), rows["value"]
    if against != "update":
        counted = each_run(study.of(f"progress/{against}"), "step", "value")
        paid = ((step, *counted[run]) for run, (step, _) in each_run(rows, "step", "value").items())
        x = np.concatenate([np.interp(step, [0, *at], [0.0, *count]) for step, at, count in paid])
    if smooth > 1:
        runs = rows.groupby("run", observed=True, sort=False)
        value = runs["value"].rolling(smooth, min_periods=1).mean().droplevel(0)
    return rows[["name", "seed"]].assign(x=x, value=value)


def each_run(rows: pd.DataFrame, x: str = "x", y: str = "value") -> dict[Any, tuple[np.ndarray, np.ndarray]]:
    """Two columns of every run, by (name, seed): slices, since the rows of a run stand together."""
    name, seed, of_x, of_y = (rows[column].to_numpy() for column in ("name", "seed", x, y))
    begins = np.flatnonzero(np.append(True, (name[1:] != name[:-1]) | (seed[1:] != seed[:-1]))[: len(rows)])
    return {
        (name[begin], int(seed[begin])): (of_x[begin:end], of_y[begin:end])
        for begin, end in pairwise([*begins, len(rows)])
    }


def band(axes: Axes, data: pd.DataFrame, colour: str, label: str) -> None:
    """The mean over seeds of curves (name, seed, x, value) of an arm as a line, their range as a band."""
    runs = each_run(data).values()
    grid = np.linspace(max(x.min() for x, _ in runs), min(x.max() for x, _ in runs), 200)
    lines = np.array([np.interp(grid, x, value) for x, value in runs])
    axes.plot(grid, lines.mean(0), color=colour, lw=2, label=label)
    axes.fill_between(grid, lines.min(0), lines.max(0), color=colour, alpha=0.18, lw=0)


def plot_curves(
    study: Study, metric: str, title: str, unit: str, against: Iterable[str] = ("update",), smooth: int = 1
) -> Figure:
    """One panel for each x axis; lines are means over seeds, bands their range. The figure is closed.

    Of many arms each has a panel of its own, against the first x axis, with the others in grey.
    """
    style()
    against = list(against)
    if len(study.arms) > MANY:
        return plot_many(study, metric, title, unit, against[0], smooth)
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
        if name in ("sequences", "tokens"):
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlim(left=0)
    for row in panels:
        row[0].set_ylabel(unit)
    panels.flat[0].legend(frameon=False)
    figure.suptitle(f"{title}: mean and range. {provenance(study)}", x=0.01, ha="left", fontsize=11)
    return laid_out(figure)


def plot_many(study: Study, metric: str, title: str, unit: str, against: str, smooth: int) -> Figure:
    """A panel an arm: its mean and range over seeds, before the means of all others."""
    data, palette = curves(study, metric, against, smooth), colours(study.arms)
    columns = 4
    rows = -(-len(study.arms) // columns)
    width, height = 2.7 * columns, 1.9 * rows + 0.8
    # Margins in inches: panels are all alike, and to lay them out by what is in them takes longer than to draw them.
    margins = {"left": 0.9 / width, "right": 1 - 0.25 / width, "bottom": 0.65 / height, "top": 1 - 0.65 / height}
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(width, height),
        squeeze=False,
        sharex=True,
        sharey=True,
        gridspec_kw={**margins, "wspace": 0.14, "hspace": 0.3},
    )
    for axes in panels.flat[len(study.arms) :]:
        axes.set_visible(False)
    for axes in panels.flat[max(0, len(study.arms) - columns) : len(study.arms)]:
        axes.tick_params(labelbottom=True)  # the lowest of its column
    means = (own.groupby("x")["value"].mean() for _, own in data.groupby("name", observed=True))
    lines = [np.column_stack([mean.index, mean]) for mean in means]
    for axes, arm in zip(panels.flat, study.arms, strict=False):
        axes.add_collection(LineCollection(lines, colors="0.85", linewidths=0.8))
        band(axes, data[data["name"] == arm], palette[arm], arm)
        axes.set_title(arm, fontsize=10)
        axes.set_xlim(left=0)
    figure.supxlabel(AXES[against], fontsize=11, y=0.1 / height, va="bottom")
    figure.supylabel(unit, fontsize=11, x=0.1 / width, ha="left")
    figure.suptitle(
        f"{title}: mean and range, others in grey. {provenance(study)}",
        x=0.01,
        y=1 - 0.1 / height,
        ha="left",
        fontsize=11,
    )
    plt.close(figure)
    return figure


def plot_final(study: Study, metric: str = ACCURACY, label: str = "held-out greedy accuracy") -> Figure:
    """Every run as a dot, the mean with its 95 % interval, the highest mean above. Figures are closed."""
    order = sorted(study.arms, key=lambda name: float(by_seed(study, metric, name).mean()))
    return plot_dots(study, {metric: label}, order)


def plot_dots(study: Study, metrics: Mapping[str, str], order: Sequence[str] = (), digits: int = 3) -> Figure:
    """A panel for each final metric (metric: label), a row an arm: dots are seeds, the bar is mean and 95 % interval.

    `order` is from the lowest row up; without it the first arm is above.
    """
    style()
    arms = list(order) or study.arms[::-1]
    height = (0.7 if len(arms) <= MANY else 0.5) * len(arms) + 1.6
    width = 7.2 if len(metrics) == 1 else 1.6 + 3.4 * len(metrics)
    figure, panels = plt.subplots(
        1, len(metrics), figsize=(width, height), sharey=True, squeeze=False, layout="constrained"
    )
    palette = colours(study.arms)
    for axes, (metric, label) in zip(panels[0], metrics.items(), strict=True):
        for row, name in enumerate(arms):
            values = by_seed(study, metric, name)
            mean, low, high = mean_interval(values)
            axes.plot([low, high], [row, row], color=palette[name], lw=3, alpha=0.5, solid_capstyle="round")
            axes.plot(values, np.full(len(values), row), "o", color=palette[name], ms=5, mec="white", mew=0.7)
            axes.plot(mean, row, "|", color="black", ms=16, mew=2)
            text = f"{mean:.{digits}f}"
            axes.annotate(text, (mean, row), (0, 10), textcoords="offset points", ha="center", fontsize=10)
        axes.set_xlabel(label)
    panels[0][0].set_yticks(range(len(arms)), arms)
    panels[0][0].set_ylim(-0.5, len(arms) - 0.3)
    figure.suptitle(f"Dots: seeds; bar: mean and 95 % interval. {provenance(study)}", x=0.01, ha="left", fontsize=10)
    return laid_out(figure)


def plot_time(study: Study) -> Figure:
    """Mean seconds of an update by phase: stacked, since they add up."""
    table = phases(study, "time").fillna(0)
    shades = dict(zip(table.index, sns.color_palette("crest", len(table)), strict=True))
    return stacked_bars(table, shades, "seconds an update")


def stacked_bars(table: pd.DataFrame, shades: Mapping[Any, Any], label: str) -> Figure:
    """A bar an arm (column), of the rows in their shades, with their sum at its end."""
    style()
    figure, axes = plt.subplots(figsize=(7.2, 0.45 * table.shape[1] + 2.0), layout="constrained")
    left = np.zeros(table.shape[1])
    for part, row in table.iterrows():
        axes.barh(
            table.columns, row, left=left, color=shades[part], label=str(part).replace("_", " "), edgecolor="white"
        )
        left += row.to_numpy()
    for arm, total in zip(table.columns, left, strict=True):
        axes.annotate(f" {total:.2f}", (total, arm), va="center", fontsize=10)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    figure.legend(frameon=False, ncols=4, loc="outside lower center")
    return laid_out(figure)


def plot_memory(study: Study) -> Figure:
    """Peak memory of each phase: side by side, since peaks do not add up. Of many arms, the largest peak alone."""
    style()
    table = phases(study, "memory")
    palette = colours(study.arms)
    if len(study.arms) > MANY:
        figure, axes = plt.subplots(figsize=(7.2, 0.4 * len(study.arms) + 1.2), layout="constrained")
        bars = axes.barh(study.arms, table.max(), color=[palette[name] for name in study.arms])
        labels = [f"{table[name].max():.0f}  ({str(table[name].idxmax()).replace('_', ' ')})" for name in study.arms]
        axes.bar_label(bars, labels=labels, fontsize=9, padding=3)
        axes.set_xlim(right=1.35 * table.max().max())
        axes.invert_yaxis()
        axes.set_xlabel("largest peak of a phase (MB), and which")
        return laid_out(figure)
    figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    width = 0.8 / len(study.arms)
    for index, name in enumerate(study.arms):
        at = np.arange(len(table)) + (index - (len(study.arms) - 1) / 2) * width
        bars = axes.bar(at, table[name].fillna(0), width, color=palette[name], label=name)
        axes.bar_label(bars, labels=[f"{v:.0f}" if v == v else "" for v in table[name]], fontsize=8, padding=1)
    axes.set_xticks(np.arange(len(table)), [str(phase).replace("_", "\n") for phase in table.index])
    axes.set_ylabel("peak MB")
    axes.legend(frameon=False)
    return laid_out(figure)


def plot_weights(study: Study) -> Figure:
    """The parameters that each model adds, by name: stacked, since they add up."""
    shades = {"actor": "#0072B2", "critic": "#E69F00", "reference": "#999999", "reward_model": "#CC79A7"}
    metrics = {f"memory/weights_{role}_mb": role for role in shades}
    rows = study.of(*metrics)
    table = rows.pivot_table(index="metric", columns="name", values="value", aggfunc="mean").rename(index=metrics)
    table = table.reindex(list(shades))[study.arms].fillna(0)
    return stacked_bars(table[table.max(axis=1) > 0], shades, "weights (MB)")
