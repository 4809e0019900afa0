"""The figures that pages share, in one style and no wider than a page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.category import StrCategoryLocator
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, LogFormatter, LogFormatterSciNotation, MaxNLocator

from bakeoff.measure import TRAINING
from bakeoff.report.statistics import Estimate
from bakeoff.report.study import ACCURACY, Study, provenance
from bakeoff.report.tables import by_seed, estimates

# The methods that most studies compare keep a colour: Okabe and Ito's palette, distinct with any colour vision.
FIXED = {"ppo": "#0072B2", "ppo_kl": "#E69F00", "grpo": "#009E73", "ppo_penalty": "#CC79A7", "trpo": "#000000"}
# The other arms take these in the study's order (Tol's muted palette); figures of many arms name every line.
OTHERS = ["#D55E00", "#56B4E9", "#882255", "#999933", "#332288", "#AA4499", "#117733", "#DDCC77", "#661100", "#6699CC"]
ROLE_SHADES = {
    "actor": "#0072B2",
    "critic": "#E69F00",
    "reference": "#999999",
    "reward_model": "#CC79A7",
    "data": "#DDDDDD",
}
MANY = 6  # arms, above which each has a panel of its own
WIDTH = 6.0  # inches: text of 10 points is readable on a page and on a phone
CHARACTERS = 72  # of a title across the page
TERM = "reward/term_"  # begins the names of a reward's parts
AXES = {"update": "updates", "sequences": "completions", "tokens": "completion tokens", "seconds": "training seconds"}


def style() -> None:
    """Sets the one style: readable in print and on a phone."""
    plt.rcParams.update(
        {
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 2,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "text.parse_math": False,  # a $ in an arm's name is a $
            "svg.hashsalt": "bakeoff",  # the same figure, the same bytes
        }
    )


def panels(count: int, height: float, columns: int = 2, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure of the page's width with `count` axes, at most `columns` side by side; `height` is a row's in inches."""
    style()
    columns = min(columns, count)
    rows = -(-count // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, height * rows + 0.4), squeeze=False, **shared)
    axes = list(grid.ravel())
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


class PlainLog(LogFormatter):
    """Labels of a logarithmic axis as plain numbers, at the ticks that matplotlib labels."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def finished(figure: Figure, caption: str, study: Study | None = None) -> Figure:
    """The figure with its caption and its text, laid out and closed.

    It is laid out once, though a page draws it as SVG and as PNG. A notebook would show an open figure a second time.
    Its text stands where a notebook shows no image, and is its alt text on a page.
    """
    caption = f"{caption} {provenance(study)}." if study else caption
    figure.suptitle(caption, x=0.01, ha="left", fontsize=10, wrap=True)
    for axes in figure.axes:
        grid = axes.get_gridspec()
        if grid and grid.ncols > 1:  # a long title or label would run over its neighbour's
            width = CHARACTERS // grid.ncols
            axes.set_title(textwrap.fill(axes.get_title("left"), width))
            axes.set_xlabel(textwrap.fill(axes.get_xlabel(), width * 3 // 4))  # beside the labels of the other axis
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) if axis.get_scale() == "log"):
        transform: Any = axis.get_transform()
        plain = PlainLog(transform.base)  # matplotlib's own writes 10² as mathematical text: see `style`
        for ticker in (axis.major, axis.minor):
            if isinstance(ticker.formatter, LogFormatterSciNotation):
                ticker.formatter = plain
                plain.set_axis(axis)
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    plt.close(figure)
    figure.set_label(in_words(figure, caption))
    vars(figure)["_repr_mimebundle_"] = lambda **_: {"text/plain": figure.get_label()}  # what IPython asks for
    return figure


def in_words(figure: Figure, caption: str) -> str:
    """What a figure shows: its caption, then the titles of its panels, its axes, and what it compares."""
    axes = [each for each in figure.axes if each.get_visible()]
    legends = [*figure.legends, *(each.get_legend() for each in axes)]
    ticks = [axis for each in axes for axis in (each.yaxis, each.xaxis)]
    ticks = [axis for axis in ticks if isinstance(axis.get_major_locator(), FixedLocator | StrCategoryLocator)]
    named = [text.get_text() for axis in ticks for text in axis.get_ticklabels()]
    words = {
        "Panels": [each.get_title(loc="left") for each in axes],
        "Across": [figure.get_supxlabel(), *(each.get_xlabel() for each in axes)],
        "Up": [figure.get_supylabel(), *(each.get_ylabel() for each in axes)],
        "Compared": [text.get_text() for legend in legends if legend for text in legend.get_texts()],
        "Rows or columns": [name for name in named if any(map(str.isalpha, name))],
    }
    lines = [f"{name}: {', '.join(found)}." for name, texts in words.items() if (found := distinct(texts))]
    return " ".join([caption, *lines])


def distinct(texts: Iterable[str]) -> list[str]:
    """The texts that are not empty, each once and on one line."""
    return list(dict.fromkeys(" ".join(text.split()) for text in texts if text.strip()))


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each arm: its own for a method in FIXED, the next of OTHERS for the rest."""
    others = [name for name in names if name not in FIXED]
    return {name: FIXED.get(name) or OTHERS[others.index(name) % len(OTHERS)] for name in names}


def curves(study: Study, metric: str, against: str = "update", smooth: int = 1) -> pd.DataFrame:
    """A metric over x for every run: name, seed, x, value.

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
    """Two columns of every run, by (name, seed), as slices: the rows of a run are contiguous."""
    name, seed, of_x, of_y = (rows[column].to_numpy() for column in ("name", "seed", x, y))
    begins = np.flatnonzero(np.append(True, (name[1:] != name[:-1]) | (seed[1:] != seed[:-1]))[: len(rows)])
    return {
        (name[begin], int(seed[begin])): (of_x[begin:end], of_y[begin:end])
        for begin, end in pairwise([*begins, len(rows)])
    }


def band(axes: Axes, data: pd.DataFrame, colour: str, label: str) -> None:
    """The mean over seeds of an arm's curves (name, seed, x, value) as a line, their range as a band."""
    runs = each_run(data).values()
    grid = np.linspace(max(x.min() for x, _ in runs), min(x.max() for x, _ in runs), 200)
    lines = np.array([np.interp(grid, x, value) for x, value in runs])
    axes.plot(grid, lines.mean(0), color=colour, label=label)
    axes.fill_between(grid, lines.min(0), lines.max(0), color=colour, alpha=0.18, lw=0)


def bands(axes: Axes, data: pd.DataFrame, palette: Mapping[str, str]) -> None:
    """A band for each arm that logged the metric, in its colour."""
    logged = set(data["name"])
    for arm, colour in palette.items():
        if arm in logged:
            band(axes, data[data["name"] == arm], colour, arm)


def legend_below(figure: Figure, all_axes: Iterable[Axes]) -> None:
    """One legend for all panels, each arm once."""
    handles = {
        label: handle for axes in all_axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(handles.values()), list(handles), ncols=3, loc="outside lower left")


def plot_curves(
    study: Study, metric: str, title: str, unit: str, against: Sequence[str] = ("update",), smooth: int = 1
) -> Figure:
    """A panel for each x axis; lines are means over seeds, bands their range.

    Of many arms each has a panel of its own against the first x axis, with the means of the others in grey.
    """
    if study.of(metric).empty:
        raise ValueError(f"no run logged {metric}")
    palette, caption = colours(study.arms), f"{title}: mean and range over seeds."
    if len(study.arms) <= MANY:
        figure, all_axes = panels(len(against), 2.7, sharey=True)
        for axes, name in zip(all_axes, against, strict=True):
            bands(axes, curves(study, metric, name, smooth), palette)
            axes.set(xlabel=AXES[name], xlim=(0, None))
        legend_below(figure, all_axes)
    else:
        data = curves(study, metric, against[0], smooth)
        # Panels are alike, so their margins (0.6 inches) are given: to measure them takes longer than to draw them.
        figure, all_axes = panels(len(study.arms), 1.6, columns=3, sharex=True, sharey=True, layout="none")
        margin = 0.6 / figure.get_figheight()
        figure.subplots_adjust(0.12, margin, 0.98, 1 - 1.3 * margin, wspace=0.12, hspace=0.4)
        means = (own.groupby("x")["value"].mean() for _, own in data.groupby("name", observed=True))
        lines = [np.column_stack([mean.index, mean]) for mean in means]
        for axes, arm in zip(all_axes, study.arms, strict=True):
            axes.add_collection(LineCollection(lines, colors="0.85", linewidths=0.8))
            bands(axes, data, {arm: palette[arm]})
            axes.set(title=arm, xlim=(0, None))
        for axes in all_axes[-3:]:
            axes.tick_params(labelbottom=True)  # the lowest of its column
        figure.supxlabel(AXES[against[0]], fontsize=10)
        caption = f"{title}: mean and range over seeds, the other arms' means in grey."
    for axes in all_axes:
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.supylabel(unit, fontsize=10)
    return finished(figure, caption, study)


def plot_terms(study: Study) -> Figure | None:
    """A panel for each part of the reward: its mean score over updates; none for one part, and for many arms."""
    every = [str(name) for name in study.metrics["metric"].unique() if str(name).startswith(TERM)]
    terms = [name for name in every if name.removesuffix("_min").removesuffix("_max") not in {*every} - {name}]
    if len(terms) < 2 or len(study.arms) > MANY:
        return None
    palette = colours(study.arms)
    figure, all_axes = panels(len(terms), 2.7)
    for axes, term in zip(all_axes, terms, strict=True):
        bands(axes, curves(study, term, smooth=5), palette)
        axes.set(title=term.removeprefix(TERM), xlabel=AXES["update"], xlim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    legend_below(figure, all_axes)
    figure.supylabel("score", fontsize=10)
    return finished(figure, "Each part of the reward, unweighted: mean and range over seeds.", study)


def plot_final(study: Study) -> Figure:
    """`plot_dots` of final held-out accuracy, the highest mean on top."""
    means = estimates(study, ACCURACY)
    best_first = sorted(study.arms, key=lambda name: -means[name].value)
    return plot_dots(study, {ACCURACY: "held-out greedy accuracy"}, best_first)


def plot_dots(study: Study, metrics: Mapping[str, str], order: Sequence[str] = ()) -> Figure:
    """A panel for each final metric (metric: label), a row for each arm, the first of `order` on top.

    Dots are seeds, the bar is the mean's 95 % interval.
    """
    arms, palette = list(order) or study.arms, colours(study.arms)
    figure, all_axes = panels(len(metrics), 0.42 * len(arms) + 0.7, sharey=True)
    for axes, (metric, label) in zip(all_axes, metrics.items(), strict=True):
        means = estimates(study, metric)
        for row, name in enumerate(arms):
            values = by_seed(study, metric, name)
            mean = means[name]
            axes.plot(mean[1:], [row, row], color=palette[name], lw=3, alpha=0.5, solid_capstyle="round")
            axes.plot(values, np.full(len(values), row), "o", color=palette[name], ms=5, mec="white", mew=0.7)
            axes.plot(mean.value, row, "|", color="black", ms=12)
            text = mean.rounded(mean.value)
            axes.annotate(text, (mean.value, row), (0, 7), textcoords="offset points", ha="center", fontsize=8)
        axes.set_xlabel(label)
    all_axes[0].set_yticks(range(len(arms)), arms)
    all_axes[0].set_ylim(len(arms) - 0.5, -0.8)
    what = ", ".join(metrics.values())
    return finished(figure, f"{what[0].upper()}{what[1:]}. Dots: seeds; bars: means with 95 % intervals.", study)


def stack(axes: Axes, table: pd.DataFrame, shades: Mapping[Any, Any], **bars: Any) -> None:
    """A bar for each column, stacked from the rows in their shades."""
    left = np.zeros(table.shape[1])
    for part, row in table.iterrows():
        axes.barh(table.columns, row, left=left, color=shades[part], label=str(part).replace("_", " "), **bars)
        left += row.to_numpy()


def stacked_bars(table: pd.DataFrame, shades: Mapping[Any, Any], label: str, caption: str) -> Figure:
    """A bar for each arm (column), stacked from the rows in their shades, with the sum at its end."""
    figure, (axes,) = panels(1, 0.36 * table.shape[1] + 1.4)
    stack(axes, table, shades, ec="white")
    for arm, total in table.sum().items():
        axes.annotate(f" {total:.3g}", (total, arm), va="center", fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel(label)
    figure.legend(ncols=4, loc="outside lower center")
    return finished(figure, caption)


def mean_by_arm(study: Study, metrics: Mapping[str, str]) -> pd.DataFrame:
    """Mean over updates and seeds of metrics: a row for each label whose metric was logged, a column for each arm."""
    wide = study.of(*metrics).pivot_table(index="metric", columns="name", values="value", aggfunc="mean", observed=True)
    wide = wide.rename(index=metrics)
    return wide.loc[[label for label in metrics.values() if label in wide.index], study.arms]


def plot_time(study: Study) -> Figure:
    """Mean seconds of an update by phase, stacked, since they add up."""
    table = mean_by_arm(study, {f"time/{phase}": phase for phase in (*TRAINING, "measure")}).fillna(0)
    shades = dict(zip(table.index, plt.colormaps["viridis"](np.linspace(0.1, 0.9, len(table))), strict=True))
    return stacked_bars(
        table, shades, "seconds per update", "Time of an update by phase, means over updates and seeds."
    )


def plot_weights(study: Study) -> Figure:
    """The weights that each model adds, stacked, since they add up."""
    table = mean_by_arm(study, {f"memory/weights_{role}_mb": role for role in ROLE_SHADES}).fillna(0)
    return stacked_bars(table[table.max(axis=1) > 0], ROLE_SHADES, "weights (MB)", "The weights that each model adds.")


def plot_over_strength(axes: Axes, points: Iterable[tuple[float, Estimate]], colour: str, label: str) -> None:
    """Means with 95 % intervals over a numeric setting: a line with a bar at each point."""
    xs, means = zip(*sorted(points), strict=True)
    axes.plot(xs, [mean.value for mean in means], "o-", color=colour, ms=6, mec="white", label=label)
    for x, mean in zip(xs, means, strict=True):
        axes.plot([x, x], mean[1:], color=colour, alpha=0.4)
