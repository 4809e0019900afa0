"""Memory by model, kind and phase, against what it earns: the frames and figures of the memory page."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bakeoff.attribution import KINDS, ROLES
from bakeoff.measure.phase import TRAINING
from bakeoff.report.figures import colours, stacked_bars, style
from bakeoff.report.statistics import mean_interval, paired_difference
from bakeoff.report.study import ACCURACY, Study
from bakeoff.report.tables import by_seed

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
GIGA = 10_000  # MB, from which on a figure is in GB


def ledger(study: Study) -> pd.DataFrame:
    """Every cell of every ledger: name, seed, phase, role, kind, mb. Of several followed updates the largest."""
    rows = study.metrics[study.metrics["metric"].str.fullmatch(r"memory/\w+/\w+_mb")]
    parts = rows["metric"].str.extract(rf"memory/(\w+)/(?:({'|'.join(ROLES)})_)?({'|'.join([*KINDS, 'remainder'])})_mb")
    frame = rows[["name", "seed", "value"]].assign(phase=parts[0], role=parts[1].fillna("data"), kind=parts[2])
    keys = ["name", "seed", "phase", "role", "kind"]
    return frame.groupby(keys, sort=False)["value"].max().rename("mb").reset_index()


def peaks(study: Study) -> pd.DataFrame:
    """The peak of every phase of training: name, seed, phase, mb; in the order of the phases."""
    names = {f"memory/{phase}_mb": phase for phase in TRAINING}
    rows = study.metrics[study.metrics["metric"].isin(list(names))]
    frame = rows.assign(phase=rows["metric"].map(names)).groupby(["name", "seed", "phase"], sort=False)["value"].max()
    order = {phase: number for number, phase in enumerate(TRAINING)}
    table = frame.rename("mb").reset_index()
    return table.sort_values("phase", key=lambda phase: phase.map(order), kind="stable").reset_index(drop=True)


def largest_peaks(study: Study) -> pd.DataFrame:
    """A row an arm: the phase of its largest peak, that peak in MB (mean over seeds), and seeds."""
    means = peaks(study).groupby(["name", "phase"], sort=False)["mb"].agg(["mean", "count"]).reset_index()
    best = means.loc[means.groupby("name", sort=False)["mean"].idxmax()]
    table = best.rename(columns={"mean": "mb", "count": "seeds"}).set_index("name")
    return table.reindex([arm for arm in study.arms if arm in table.index]).reset_index()


def peaks_markdown(study: Study) -> str:
    """The largest peak of each arm as a Markdown table."""
    table = largest_peaks(study)
    rows = {
        "arm": "`" + table["name"] + "`",
        "largest peak": [f"{mb / 1000:,.1f} GB" if mb > GIGA else f"{mb:,.1f} MB" for mb in table["mb"]],
        "in": table["phase"].str.replace("_", " "),
    }
    return pd.DataFrame(rows).to_markdown(index=False) + "\n"


def at_peak(study: Study, by: str) -> pd.DataFrame:
    """What each arm's largest peak is made of, by `role` or `kind`: a row a part, a column an arm, in MB."""
    cells = ledger(study).merge(largest_peaks(study)[["name", "phase"]], on=["name", "phase"])
    sums = cells.groupby(["name", "seed", by])["mb"].sum().groupby(["name", by]).mean()
    table = sums.unstack("name").fillna(0)
    order = [part for part in (ROLES if by == "role" else [*KINDS, "remainder"]) if part in table.index]
    return table.loc[order, [arm for arm in study.arms if arm in table.columns]]


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
    plt.close(figure)
    return figure


def prediction(study: Study) -> pd.DataFrame:
    """What was predicted for each phase that runs a model beside what was measured: a row an arm and phase."""
    rows = study.metrics[study.metrics["metric"].str.startswith("memory/predicted_")]
    phased = rows.assign(phase=rows["metric"].str.extract(r"predicted_(\w+)_mb")[0])
    predicted = phased.groupby(["name", "phase"])["value"].max().rename("predicted (MB)")
    measured = peaks(study).groupby(["name", "phase"])["mb"].max().rename("measured (MB)")
    table = pd.concat([measured, predicted], axis=1, join="inner").reset_index()
    table = table[~table["phase"].isin(["reward", "offload"])]  # there no model runs
    return table.assign(error=table["predicted (MB)"] / table["measured (MB)"] - 1)


def pareto(study: Study) -> pd.DataFrame:
    """A row an arm: largest peak, final accuracy with its 95 % interval, seeds, and whether it is on the front.

    On the front is whom no other arm beats in both means; intervals say how much of that is noise.
    """
    table = largest_peaks(study)[["name", "phase", "mb"]]
    accuracy = {name: mean_interval(by_seed(study, ACCURACY, name)) for name in table["name"]}
    table[["accuracy", "low", "high"]] = [accuracy[name] for name in table["name"]]
    table["seeds"] = [len(by_seed(study, ACCURACY, name)) for name in table["name"]]
    better = [
        ((table["mb"] < row["mb"]) & (table["accuracy"] >= row["accuracy"])).any()
        or ((table["mb"] <= row["mb"]) & (table["accuracy"] > row["accuracy"])).any()
        for _, row in table.iterrows()
    ]
    return table.assign(front=[not each for each in better])


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
    axes.set_xlabel("peak memory (MB)")
    seeds = int(table["seeds"].min())
    axes.set_ylabel("held-out greedy accuracy")
    axes.set_title(f"Mean and 95 % interval over {seeds} seeds; dashed: the front of the means", fontsize=10)
    plt.close(figure)
    return figure


def plain_log(axes: Axes) -> None:
    """A logarithmic y axis with numbers as a person writes them."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def plot_over(study: Study, key: str, label: str) -> Figure:
    """Largest peaks over a numeric parameter (`rollout.group_size`), a line for each arm and model."""
    style()
    table = over(study, key)
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    palette = colours(list(dict.fromkeys(table["arm"])))
    styles = dict(zip(dict.fromkeys(table["model"]), ["-", "--", ":", "-."], strict=False))
    for (arm, model), rows in table.groupby(["arm", "model"], sort=False):
        line, colour = rows.sort_values("x"), palette[str(arm)]
        axes.plot(line["x"], line["mb"] / 1000, styles[str(model)], color=colour, marker="o", ms=4)
        axes.annotate(
            f" {arm}, {model}",
            (line["x"].iloc[-1], line["mb"].iloc[-1] / 1000),
            va="center",
            fontsize=8,
            color=colour,
        )
    axes.set_xscale("log", base=2)
    plain_log(axes)
    axes.set_xticks(sorted(set(table["x"])), [f"{x:g}" for x in sorted(set(table["x"]))])
    axes.set_xlim(right=max(table["x"]) * 4)
    axes.set_xlabel(label)
    axes.set_ylabel("largest peak (GB)")
    plt.close(figure)
    return figure


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
    plt.close(figure)
    return figure


def over(study: Study, key: str) -> pd.DataFrame:
    """Largest peak of each arm over a numeric parameter: arm, model, x, mb. The arm is what the sweep calls it."""
    values = study.params[study.params["key"] == key].set_index("run")["value"].astype(float)
    tags = study.runs.assign(x=study.runs["run"].map(values))
    choice = study.params[study.params["key"] == "choice/arm"].set_index("run")["value"]
    named = tags["run"].map(choice).fillna("none")
    tags["arm_name"] = named.where(named != "none", tags["algorithm"])
    table = largest_peaks(study).merge(tags[["name", "arm_name", "model", "x"]].drop_duplicates("name"), on="name")
    return table.rename(columns={"arm_name": "arm"})[["arm", "model", "x", "mb"]]


def crossing(study: Study, expensive: str, cheap: str) -> pd.DataFrame:
    """For each model: the smallest group at which `cheap` needs more than `expensive` with its smallest group.

    NaN where no group of the study does. In the study `memory_group` these are PPO's critic and GRPO's group.
    """
    table = over(study, "rollout.group_size")
    rows = []
    for model, own in table.groupby("model", sort=False):
        if not {expensive, cheap} <= set(own["arm"]):
            continue  # of a sweep that is not finished
        bar = own[own["arm"] == expensive].sort_values("x")["mb"].iloc[0]
        beyond = own[(own["arm"] == cheap) & (own["mb"] > bar)]["x"]
        rows.append({"model": model, "bar (MB)": bar, "group": beyond.min()})
    return pd.DataFrame(rows)


def critic_verdict(study: Study, without: str = "critic_none", separate: str = "critic_separate") -> str:
    """What dropping the critic saves and what it costs, in a sentence with figures."""
    peak = {str(row["name"]): float(row["mb"]) for _, row in largest_peaks(study).iterrows()}
    saved = peak[separate] - peak[without]
    a, b = by_seed(study, ACCURACY, without), by_seed(study, ACCURACY, separate)
    mean, low, high = paired_difference(a, b)
    equal = "the two tie" if low <= 0 <= high else f"{without if mean > 0 else separate} is higher"
    return (
        f"Dropping PPO's separate critic (GRPO in its place) saves {saved:.1f} of {peak[separate]:.1f} MB, "
        f"{saved / peak[separate]:.0%} of the largest peak, and changes held-out greedy accuracy by "
        f"{mean:+.3f} [{low:+.3f}, {high:+.3f}] over {len(a)} seeds: {equal}."
    )


def size_verdict(study: Study, without: str = "critic_none", separate: str = "critic_separate") -> str:
    """What dropping the critic would save from the smallest to the largest model, in a sentence with figures."""
    table = sizes(study)
    shares = 1 - table.loc[without] / table.loc[separate]
    shown = ", ".join(f"{share:.0%} with {model}" for model, share in zip(table.columns, list(shares), strict=True))
    return f"Predicted, dropping PPO's separate critic saves of the largest peak: {shown}."


def group_verdict(study: Study) -> str:
    """From which group on GRPO needs more than PPO, in a sentence with figures."""
    parts = []
    smallest = int(over(study, "rollout.group_size")["x"].min())
    for _, row in crossing(study, "critic_separate", "critic_none").iterrows():
        group = float(row["group"])
        tried = "at no size that was tried" if np.isnan(group) else f"from {group:.0f} completions a prompt on"
        parts.append(f"{tried} with {row['model']}")
    if not parts:
        return "The study of the group has not finished."
    return (
        f"Predicted for eight prompts of 512 tokens and answers of 512, GRPO needs more memory than PPO with "
        f"{smallest} completions a prompt {', and '.join(parts)}: the group's cache takes what the critic held."
    )


def actor_weights(study: Study) -> pd.Series:
    """MB of the actor's weights by model, the smallest first."""
    rows = study.metrics[study.metrics["metric"] == "memory/weights_actor_mb"].merge(study.runs[["run", "model"]])
    return rows.groupby("model")["value"].max().sort_values()


def sizes(study: Study) -> pd.DataFrame:
    """Largest peak in GB of each arm (row) with each model (column), the smallest model first."""
    table = over(study, "rollout.group_size")
    wide = table.pivot_table(index="arm", columns="model", values="mb", sort=False) / 1000
    return wide[actor_weights(study).index]
