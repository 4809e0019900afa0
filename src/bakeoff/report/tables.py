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

from bakeoff.report.statistics import Estimate, mean_interval
from bakeoff.report.study import ACCURACY, Study

INTERVAL = "[95 %]"  # the end of a label whose column shows means with their 95 % intervals
FINAL_ACCURACY = f"held-out greedy accuracy {INTERVAL}"


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


def start_accuracy(study: Study) -> float:
    """Mean held-out accuracy of the runs before their first update."""
    return float(study.of(ACCURACY).drop_duplicates("run")["value"].mean())


def by_run(study: Study, **columns: Any) -> pd.DataFrame:
    """A row for each run, in the sweep's order: name, seed and the columns, lists or series by name and seed."""
    return study.runs.set_index(["name", "seed"])[[]].assign(**columns).reset_index()


def estimates(study: Study, metric: str) -> dict[str, Estimate]:
    """Mean and 95 % interval over seeds of a final metric, by arm."""
    return {name: mean_interval(by_seed(study, metric, name)) for name in study.arms}


def estimates_table(study: Study, metrics: Mapping[str, str]) -> pd.DataFrame:
    """A row for each arm: mean and 95 % interval over seeds of each final metric, in columns named by the labels."""
    columns = {label: [each.text() for each in estimates(study, metric).values()] for metric, label in metrics.items()}
    return pd.DataFrame({"method": study.arms, **columns})


def summary(runs: pd.DataFrame, groups: Mapping[str, str], columns: Mapping[str, str]) -> pd.DataFrame:
    """A row for each group of runs: what they have in common, and means over them, in columns named by the labels.

    A label that ends in INTERVAL has the mean's 95 % interval too. NaN in one run is NaN in the mean.
    """
    rows = []
    for common, own in runs.groupby(list(groups), sort=False):
        means = {
            label: mean_interval(own[column]).text() if label.endswith(INTERVAL) else own[column].mean(skipna=False)
            for column, label in columns.items()
        }
        rows.append(dict(zip(groups.values(), common, strict=True)) | means)
    return pd.DataFrame(rows)


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Every cell as text."""
    return frame.map(lambda cell: number(cell) if isinstance(cell, float | int) else str(cell))


def number(value: float) -> str:
    """Three significant digits, or a whole number; NaN is `–`."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "never"
    return f"{value:,.0f}" if value == 0 or abs(value) >= 100 or isinstance(value, int) else f"{value:#.3g}"


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table."""
    return str(as_text(frame).to_markdown(index=False, disable_numparse=True)) + "\n"


def shown(frame: pd.DataFrame) -> Styler:
    """A frame as a page shows it: numbers aligned right, an interval on one line; the same frame, the same bytes."""
    text = as_text(frame)
    right: Any = {"selector": "", "props": "text-align: right"}
    styled = text.style.hide(axis="index").format(html_cell)
    styled = styled.set_table_styles({column: [right] for column in frame.select_dtypes("number")}, overwrite=False)
    return styled.set_uuid(hashlib.sha256(text.to_csv().encode()).hexdigest()[:8])


def html_cell(text: object) -> str:
    """A cell in HTML: names may break after an underscore, intervals stay whole where the page is wide enough."""
    broken = html.escape(str(text)).replace("_", "_<wbr>")
    return re.sub(r"\[[^\]]*\]", lambda found: f'<span class="interval">{found[0]}</span>', broken)
