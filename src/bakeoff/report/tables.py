"""The tables of a page: values of runs as frames, and frames as text with as many digits as they support."""

from __future__ import annotations

import hashlib
import html
import math
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
from pandas.api.typing import SeriesGroupBy
from pandas.io.formats.style import Styler

from bakeoff.measure import STILL
from bakeoff.report.naming import enumerated
from bakeoff.report.statistics import Estimate, mean_interval, share_interval
from bakeoff.report.study import ACCURACY, NOT_SCORED, PRIMARY, SAMPLED, SHARES, Study

FITTED = ("asymptote", "completions to the middle", "steepness")  # labels of the columns of a fitted curve
BOOTSTRAPPED = ("IQM", *FITTED)
INTERVAL = "[95 %]"  # the end of a label whose column shows means with their 95 % intervals
NUMBER = re.compile(r"[-+−]?[\d,.]+( %)?|–|[-+]?∞")  # a cell that is aligned right
FINAL_ACCURACY = f"held-out greedy accuracy {INTERVAL}"
FINAL_SAMPLED = f"held-out sampled accuracy {INTERVAL}"
PASS_AT = "eval/pass_at_"  # and k
REFERENCE_KL = "kl/reference_k3_per_sequence"  # to the start
SECONDS = "progress/seconds"  # of training
STEP_KL = "kl/behaviour_k3_per_token"  # of an update


def grouped(study: Study, *metrics: str) -> SeriesGroupBy[Any, Any]:
    """The values of metrics at all steps, grouped by name and seed, to be aggregated as by `.mean()`."""
    return study.of(*metrics).astype({"name": str}).groupby(["name", "seed"], sort=False)["value"]


def final(study: Study, metric: str) -> pd.Series:
    """The last value of a metric in each run, by name and seed."""
    rows = study.last[study.last["metric"] == metric]
    return rows.astype({"name": str}).set_index(["name", "seed"])["value"]


def by_seed(study: Study, metric: str, name: str) -> pd.Series:
    """The final values of one arm, by seed; empty where it has none."""
    values = final(study, metric)
    return values[values.index.get_level_values("name") == name].droplevel("name")


def ends(study: Study, metric: str, **parameters: str) -> pd.DataFrame:
    """A row for each run that has a metric and some parameters (column=key), in the study's order.

    The columns are name, method, seed, the parameters, and the first and the last value of the metric.
    """
    values = study.of(metric).astype({"run": str}).groupby("run", sort=False)["value"].agg(["first", "last"])
    runs = study.runs[["run", "name", "algorithm", "seed"]].rename(columns={"algorithm": "method"})
    columns = {name: runs["run"].map(study.param_by_run(key)) for name, key in parameters.items()}
    return runs.assign(**columns).join(values, on="run").dropna(ignore_index=True).drop(columns="run")


def largest_kl(runs: SeriesGroupBy[Any, Any]) -> pd.Series:
    """The largest KL to the start of each run's updates, infinite for fewer than three: that of the first is 0."""
    return runs.max().where(runs.size() >= 3, math.inf)


def unmoved(study: Study, runs: pd.DataFrame | None = None, column: str = "name") -> frozenset[str]:
    """The arms whose policies have not moved, by the mean over seeds of their largest KL to the start.

    With `runs`, which name their arms: the values of a column whose arms have all not moved.
    """
    most = largest_kl(grouped(study, REFERENCE_KL)).groupby("name").mean()
    still = frozenset(most.index[most < STILL])
    if runs is None:
        return still
    return frozenset(str(value) for value, names in runs.groupby(column)["name"] if still.issuperset(names))


def start_accuracy(study: Study, metric: str = ACCURACY) -> float:
    """Mean held-out accuracy, greedy or sampled, of the runs before their first update; NaN where none logged it."""
    rows = study.of(metric)
    return float(rows["value"][rows["step"] == 0].mean())


def not_scored(study: Study) -> pd.Series:
    """The share of completions that could not be scored, mean over updates and seeds, of each arm where it is above 0.

    The index are the arms in the study's order.
    """
    shares = grouped(study, NOT_SCORED).mean().groupby("name").mean().reindex(study.arms)
    return shares[shares > 0]


def percent(share: float) -> str:
    """`3 %`, with three significant digits."""
    return f"{100 * share:.3g} %"


def with_not_scored(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """A table whose first column are arms, with their shares of `not_scored` in a column if there are any."""
    shares = not_scored(study)
    if shares.empty:
        return table
    return table.assign(**{"not scored": table.iloc[:, 0].map(shares).map(percent, na_action="ignore")})


def by_run(study: Study, **columns: Any) -> pd.DataFrame:
    """A row for each run, in the sweep's order: name, seed and the columns, lists or series by name and seed."""
    return study.runs.set_index(["name", "seed"])[[]].assign(**columns).reset_index()


def estimates(study: Study, metric: str) -> dict[str, Estimate]:
    """Mean and 95 % interval over seeds of a final metric, by arm; that of a share stays within [0, 1]."""
    interval = share_interval if metric in SHARES or metric.startswith(PASS_AT) else mean_interval
    return {name: interval(by_seed(study, metric, name)) for name in study.arms}


def mean_text(values: pd.Series) -> str:
    """The mean over seeds with the digits that its 95 % interval supports, at least two significant ones.

    Without an interval it has three.
    """
    mean = mean_interval(values)
    return mean.rounded(mean.value, digits=2) if mean.high > mean.low else number(mean.value)


def estimates_table(study: Study, metrics: Mapping[str, str]) -> pd.DataFrame:
    """A row for each arm: mean and 95 % interval over seeds of each final metric, in columns named by the labels."""
    columns = {
        f"{label} {INTERVAL}": [each.text() for each in estimates(study, metric).values()]
        for metric, label in metrics.items()
    }
    return with_not_scored(study, pd.DataFrame({"method": study.arms, **columns}))


def pass_at_k(study: Study) -> pd.DataFrame:
    """A row for each arm whose evaluations sample several completions of a prompt: pass@k at the end, by k."""
    logged = [name for name in map(str, study.last["metric"].unique()) if name.startswith(PASS_AT)]
    of_k = {int(name.removeprefix(PASS_AT)): name for name in logged}
    named = {SAMPLED: "pass@1"} | {of_k[k]: f"pass@{k}" for k in sorted(of_k)}
    own = [name for name in study.arms if any(len(by_seed(study, each, name)) for each in of_k.values())]
    table = estimates_table(study, named)
    return table[table["method"].isin(own)].reset_index(drop=True)


def per_seed(study: Study) -> pd.DataFrame:
    """The final accuracies: a row for each arm and kind of decoding, a column for each seed in order, four decimals."""
    tables = []
    for metric, decoding in PRIMARY.items():
        wide = final(study, metric).unstack("seed").reindex(study.arms).sort_index(axis="columns")
        text = wide.map(lambda value: "–" if math.isnan(value) else f"{value:.4f}").add_prefix("seed ")
        tables.append(text.rename_axis(index="method", columns=None).reset_index().assign(decoding=decoding))
    table = pd.concat(tables, ignore_index=True).fillna("–")
    return table[["method", "decoding", *table.columns.drop(["method", "decoding"])]]


def summary(runs: pd.DataFrame, groups: Mapping[str, str], columns: Mapping[str, str]) -> pd.DataFrame:
    """A row for each group of runs: what they have in common, and means over them, in columns named by the labels.

    A label that ends in INTERVAL has the mean's 95 % interval too, which stays within [0, 1] for an accuracy, a share
    and a true reward. NaN in one run is NaN in the mean.
    """
    intervals = {
        column: share_interval
        if "accuracy" in label or "share" in label or column.startswith("true")
        else mean_interval
        for column, label in columns.items()
    }
    rows = []
    for common, own in runs.groupby(list(groups), sort=False):
        means = {
            label: intervals[column](own[column]).text() if label.endswith(INTERVAL) else mean_text(own[column])
            for column, label in columns.items()
        }
        rows.append(dict(zip(groups.values(), common, strict=True)) | means)
    return pd.DataFrame(rows)


def interval_note(frame: pd.DataFrame) -> str:
    """How the intervals of a table were computed, in a sentence; empty for a table without one."""
    labels = [str(label).removesuffix(INTERVAL).strip() for label in frame if str(label).endswith(INTERVAL)]
    drawn = [label for label in labels if label in BOOTSTRAPPED]
    student = "Student's t over seeds, of shares on the logit scale, so within [0, 1]"
    ways = [student] if len(labels) > len(drawn) else []
    ways += [f"of {enumerated(drawn)} a percentile bootstrap over seeds"] if drawn else []
    return f"95 % intervals: {'; '.join(ways)}." if ways else ""


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Every cell as text."""
    return frame.map(lambda cell: number(cell) if isinstance(cell, float | int) else str(cell))


def number(value: float) -> str:
    """Three significant digits, or a whole number; NaN is `–`."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else str(value).replace("inf", "∞")
    return f"{value:,.0f}" if value == 0 or abs(value) >= 100 or isinstance(value, int) else f"{value:#.3g}"


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table, in which no text is a link, an image, HTML or the end of a cell."""
    text = as_text(frame).map(in_markdown).rename(columns=in_markdown)
    return str(text.to_markdown(index=False, disable_numparse=True)) + "\n"


def in_markdown(text: object) -> str:
    """Text as Markdown shows it literally, on one line; what is harmless, such as `ppo_kl` or `[0.1, 0.2]`, stays."""
    one_line = " ".join(str(text).split())
    return re.sub(r"[\\`*<>|&~$#]|(?<!\w)_|_(?!\w)|(?<=\])[(\[:]|(?<=\w):(?=//)|(?<=www)\.", r"\\\g<0>", one_line)


def in_html(text: object) -> str:
    """Text as HTML shows it literally, on one line: a blank line within HTML would let Markdown go on."""
    return html.escape(" ".join(str(text).split()))


def shown(frame: pd.DataFrame) -> Styler | None:
    """A frame as a page shows it: numbers aligned right, an interval on one line, and the note on its intervals.

    The same frame gives the same bytes. A frame without a row, as of one arm's comparisons, shows nothing.
    """
    if frame.empty:
        return None
    text = as_text(frame)
    right: Any = {"selector": "", "props": "text-align: right"}
    numbers = [column for column, cells in text.items() if all(map(NUMBER.fullmatch, cells)) and any(cells != "–")]
    styled = text.style.hide(axis="index").format(html_cell).format_index(html_cell, axis="columns")
    styled = styled.set_table_styles({column: [right] for column in numbers}, overwrite=False)
    if note := interval_note(frame):
        styled = styled.set_caption(note)
    return styled.set_uuid(hashlib.sha256(text.to_csv().encode()).hexdigest()[:8])


def html_cell(text: object) -> str:
    """A cell in HTML: names may break after an underscore, intervals stay whole where the page is wide enough."""
    broken = in_html(text).replace("_", "_<wbr>")
    return re.sub(r"\[[-+.,\d ]+\]", lambda found: f'<span class="interval">{found[0]}</span>', broken)
