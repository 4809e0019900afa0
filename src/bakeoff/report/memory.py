"""Memory by model, kind and phase: the frames and figures that the pages on memory share."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from bakeoff.attribution import KINDS, ROLES
from bakeoff.measure import TRAINING
from bakeoff.report.figures import colours, finished, panels, stacked_bars
from bakeoff.report.naming import settings
from bakeoff.report.study import Study

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
BYTES = EngFormatter(unit="B", places=1)


def size(mb: float) -> str:
    """Megabytes as a person writes them: `7.3 MB`, `41.0 GB`."""
    return BYTES.format_data(mb * 1e6)


def ledger(study: Study) -> pd.DataFrame:
    """Every cell of every ledger: name, seed, phase, role, kind, mb; of several traced updates the largest."""
    cells = [str(name) for name in study.metrics["metric"].cat.categories if str(name).count("/") == 2]
    names = pd.Series([name for name in cells if name.startswith("memory/")], dtype=str)
    pattern = rf"memory/(\w+)/(?:({'|'.join(ROLES)})_)?({'|'.join([*KINDS, 'remainder'])})_mb"
    parts = names.str.extract(pattern).set_axis(["phase", "role", "kind"], axis=1).fillna({"role": "data"})
    rows = study.of(*names).astype({"name": str, "metric": str}).merge(parts.assign(metric=names), on="metric")
    keys = ["name", "seed", "phase", "role", "kind"]
    return rows.groupby(keys, sort=False)["value"].max().rename("mb").reset_index()


def peaks(study: Study) -> pd.DataFrame:
    """The peak of every phase of training: name, seed, phase, mb; in the order of the phases."""
    names = {f"memory/{phase}_mb": phase for phase in TRAINING}
    rows = study.of(*names).astype({"name": str})
    rows = rows.assign(phase=rows["metric"].map(names).astype(str), mb=rows["value"])
    frame = rows.groupby(["name", "seed", "phase"], sort=False)["mb"].max().reset_index()
    return frame.sort_values("phase", key=lambda phase: phase.map(TRAINING.index), kind="stable", ignore_index=True)


def largest_peaks(study: Study) -> pd.DataFrame:
    """A row for each arm: name, the phase of its largest peak, and that peak in MB, mean over seeds."""
    means = peaks(study).groupby(["name", "phase"], sort=False)["mb"].mean().reset_index()
    best = means.loc[means.groupby("name", sort=False)["mb"].idxmax()].set_index("name")
    return best.reindex([arm for arm in study.arms if arm in best.index]).reset_index()


def peaks_table(study: Study) -> pd.DataFrame:
    """The largest peak of each arm and its phase."""
    frame = largest_peaks(study)
    phases = frame["phase"].str.replace("_", " ")
    return pd.DataFrame({"arm": frame["name"], "largest peak": frame["mb"].map(size), "in the phase": phases})


def at_peak(study: Study, by: str) -> pd.DataFrame:
    """What each arm's largest peak consists of, by `role` or `kind`: a row for each part, a column for each arm, MB."""
    cells = ledger(study).merge(largest_peaks(study)[["name", "phase"]], on=["name", "phase"])
    sums = cells.groupby(["name", "seed", by])["mb"].sum().groupby(["name", by]).mean()
    table = sums.unstack("name").fillna(0)
    order = [part for part in (ROLES if by == "role" else [*KINDS, "remainder"]) if part in table.index]
    return table.loc[order, [arm for arm in study.arms if arm in table.columns]]


def predictions(study: Study) -> pd.DataFrame:
    """Predicted and measured peak of each phase that runs a model: name, phase, measured and predicted (MB), error."""
    rows = study.of(*(f"memory/predicted_{phase}_mb" for phase in TRAINING)).astype({"name": str, "metric": str})
    rows = rows.assign(phase=rows["metric"].str.extract(r"predicted_(\w+)_mb")[0])
    predicted = rows.groupby(["name", "phase"])["value"].max().rename("predicted")
    measured = peaks(study).groupby(["name", "phase"])["mb"].max().rename("measured")
    frame = pd.concat([measured, predicted], axis=1, join="inner").reset_index()
    frame = frame[~frame["phase"].isin(["reward", "offload"])]  # phases without a forward pass
    return frame.assign(error=frame["predicted"] / frame["measured"] - 1)


def predictions_table(study: Study) -> pd.DataFrame:
    """`predictions` as a page shows it."""
    frame = predictions(study)
    return pd.DataFrame(
        {
            "arm": frame["name"],
            "phase": frame["phase"].str.replace("_", " "),
            "predicted": frame["predicted"].map(size),
            "measured": frame["measured"].map(size),
            "error": frame["error"].map("{:+.1%}".format),
        }
    )


def peaks_over(study: Study, key: str) -> pd.DataFrame:
    """The largest peak over a numeric parameter: arm (named by the sweep, or the algorithm), model, x, mb."""
    runs = study.runs[["run", "name", "model"]]
    arms = [each.get("arm", name) for each, name in zip(settings(study.runs), study.runs["algorithm"], strict=True)]
    runs = runs.assign(arm=arms, x=runs["run"].map(study.param(key)).astype(float))
    return largest_peaks(study).merge(runs.drop_duplicates("name"), on="name")[["arm", "model", "x", "mb"]]


def log_bytes(axes: Axes) -> None:
    """A logarithmic y axis of bytes."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(EngFormatter(unit="B"))


def plot_at_peak(study: Study, by: str) -> Figure:
    """Stacked bars of each arm's largest peak, by `role` or `kind`; its phase is below the arm's name."""
    table, phase = at_peak(study, by), largest_peaks(study).set_index("name")["phase"]
    unit, table = ("GB", table / 1000) if table.sum().max() >= 1000 else ("MB", table)
    table.columns = [f"{arm}\n{phase[arm].replace('_', ' ')}" for arm in table.columns]
    shades = ROLE_SHADES if by == "role" else KIND_SHADES
    return stacked_bars(table, shades, f"{unit} at the peak of the phase below each name, by {by}")


def plot_phases(study: Study) -> Figure:
    """A panel for each arm: what is held at the peak of each phase of an update, stacked by kind."""
    cells = (
        ledger(study).groupby(["name", "phase", "kind", "seed"])["mb"].sum().groupby(["name", "phase", "kind"]).mean()
    )
    kinds = [kind for kind in KIND_SHADES if kind in cells.index.get_level_values("kind")]
    order = [phase for phase in TRAINING if phase in cells.index.get_level_values("phase")]
    columns = min(2, len(study.arms))
    figure, all_axes = panels(-(-len(study.arms) // columns), columns, 0.3 * len(order) + 0.5, sharex=True, sharey=True)
    for axes, arm in zip(all_axes, study.arms, strict=False):
        own = 1e6 * cells[arm].unstack("kind").reindex(index=order, columns=kinds).fillna(0)
        left = pd.Series(0.0, own.index)
        for kind in kinds:
            label = kind.replace("_", " ")
            axes.barh([p.replace("_", " ") for p in order], own[kind], left=left, color=KIND_SHADES[kind], label=label)
            left += own[kind]
        axes.set_title(arm)
        axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
    for axes in all_axes[len(study.arms) :]:
        axes.set_visible(False)
    all_axes[0].invert_yaxis()
    figure.legend(*all_axes[0].get_legend_handles_labels(), ncols=4, loc="outside lower center")
    return finished(figure)


def plot_over(study: Study, key: str, label: str) -> Figure:
    """Largest peaks over a numeric parameter such as `batch.group_size`, a line for each arm and model."""
    table = peaks_over(study, key)
    figure, (axes,) = panels(1, 1, 3.8)
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
    axes.set(xlabel=label, ylabel="largest peak")
    figure.legend(ncols=2, loc="outside lower left")
    return finished(figure)
