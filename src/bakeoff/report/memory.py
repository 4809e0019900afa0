"""Memory by model, kind and phase: the frames and figures that the pages on memory share."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from bakeoff.measure import TRAINING
from bakeoff.report.figures import ROLE_SHADES, colours, finished, panels, stack, stacked_bars
from bakeoff.report.naming import settings
from bakeoff.report.study import Study
from bakeoff.report.tables import by_run

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
SHADES = {"role": ROLE_SHADES, "kind": KIND_SHADES}
BYTES = EngFormatter(unit="B", places=1)


def size(mb: float) -> str:
    """Megabytes as a person writes them: `7.3 MB`, `41.0 GB`."""
    return BYTES.format_data(mb * 1e6)


def ledger(study: Study) -> pd.DataFrame:
    """Every cell of every ledger: name, seed, phase, role, kind, mb; the largest of the traced updates."""
    cells = [str(name) for name in study.metrics["metric"].cat.categories if str(name).count("/") == 2]
    names = pd.Series([name for name in cells if name.startswith("memory/")], dtype=str)
    pattern = rf"memory/(\w+)/(?:({'|'.join(ROLE_SHADES)})_)?({'|'.join(KIND_SHADES)})_mb"
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
    arms = [each.get("arm", name) for each, name in zip(settings(study.runs), study.runs["algorithm"], strict=True)]
    runs = by_run(study, arm=arms, model=list(study.runs["model"]), x=study.param(key).astype(float))
    return largest_peaks(study).merge(runs.drop_duplicates("name"), on="name")[["arm", "model", "x", "mb"]]


def plot_largest(study: Study) -> Figure:
    """The largest peak of each arm, and its phase."""
    frame, shades = largest_peaks(study), colours(study.arms)
    figure, (axes,) = panels(1, 0.36 * len(frame) + 0.8)
    bars = axes.barh(frame["name"], frame["mb"], color=list(frame["name"].map(shades)))
    labels = frame["mb"].map("{:.3g}  (".format) + frame["phase"].str.replace("_", " ") + ")"
    axes.bar_label(bars, labels=list(labels), fontsize=9, padding=3)
    axes.margins(x=0.35)
    axes.invert_yaxis()
    axes.set_xlabel("largest peak (MB), and its phase")
    return finished(figure, "The largest peak of memory in the phases of training, mean over seeds.")


def log_bytes(axes: Axes) -> None:
    """A logarithmic y axis of bytes."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(EngFormatter(unit="B"))


def plot_at_peak(study: Study, by: str) -> Figure:
    """Stacked bars of what each arm's largest peak consists of, by `role` or `kind`; its phase is below its name."""
    peak = largest_peaks(study)[["name", "phase"]]
    cells = ledger(study).merge(peak, on=["name", "phase"])
    sums = cells.groupby(["name", "seed", by])["mb"].sum().groupby(["name", by]).mean()
    table = sums.unstack("name").fillna(0)
    peak = peak[peak["name"].isin(table.columns)]
    table = table.loc[[part for part in SHADES[by] if part in table.index], peak["name"]]
    unit, table = ("GB", table / 1000) if table.sum().max() >= 1000 else ("MB", table)
    table.columns = peak["name"] + "\n" + peak["phase"].str.replace("_", " ")
    label = f"{unit} at the peak of the phase below each name, by {by}"
    return stacked_bars(table, SHADES[by], label, f"What the largest peak of each arm consists of, by {by}.")


def plot_phases(study: Study) -> Figure:
    """A panel for each arm: what is held at the peak of each phase of an update, stacked by kind."""
    sums = ledger(study).groupby(["name", "phase", "kind", "seed"])["mb"].sum()
    cells = 1e6 * sums.groupby(["kind", "name", "phase"]).mean().unstack("kind").T  # bytes, a row for each kind
    kinds = [kind for kind in KIND_SHADES if kind in cells.index]
    order = [phase for phase in TRAINING if phase in cells.columns.get_level_values("phase")]
    figure, all_axes = panels(len(study.arms), 0.3 * len(order) + 0.5, sharex=True, sharey=True)
    for axes, arm in zip(all_axes, study.arms, strict=True):
        own = pd.DataFrame(cells[arm]).reindex(index=kinds, columns=order).fillna(0)
        stack(axes, own.rename(columns=lambda phase: phase.replace("_", " ")), KIND_SHADES)
        axes.set_title(arm)
        axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
    all_axes[0].invert_yaxis()
    figure.legend(*all_axes[0].get_legend_handles_labels(), ncols=4, loc="outside lower center")
    return finished(figure, "What is held at the peak of each phase of an update, by kind.")
