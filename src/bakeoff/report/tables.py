"""The tables of a page: values of runs as frames, and frames as text with as many digits as they support."""

from __future__ import annotations

import hashlib
import html
import math
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from bakeoff.measure import TRAINING
from bakeoff.report.statistics import Estimate, mean_interval
from bakeoff.report.study import Study


def final(study: Study, metric: str) -> pd.DataFrame:
    """The last value of a metric in each run: columns name, seed, value."""
    return study.last.loc[study.last["metric"] == metric, ["name", "seed", "value"]]


def first(study: Study, metric: str) -> pd.DataFrame:
    """The first value of a metric in each run: columns name, seed, value."""
    return study.of(metric).drop_duplicates("run")[["name", "seed", "value"]]


def by_seed(study: Study, metric: str, name: str) -> pd.Series:
    """The final values of one arm, indexed by seed."""
    rows = final(study, metric)
    return rows[rows["name"] == name].set_index("seed")["value"]


def final_by_run(study: Study, metric: str) -> pd.Series:
    """The final value of each run, indexed by name and seed."""
    return final(study, metric).astype({"name": str}).set_index(["name", "seed"])["value"]


def estimates(study: Study, metric: str) -> dict[str, Estimate]:
    """Mean and 95 % interval over seeds of a final metric, by arm."""
    return {name: mean_interval(by_seed(study, metric, name)) for name in study.arms}


def estimates_table(study: Study, metrics: Mapping[str, str]) -> pd.DataFrame:
    """A row for each arm: mean and 95 % interval over seeds of each final metric, in columns named by the labels."""
    columns = {label: [each.text() for each in estimates(study, metric).values()] for metric, label in metrics.items()}
    return pd.DataFrame({"method": study.arms, **columns})


def by_phase(study: Study, prefix: str) -> pd.DataFrame:
    """Mean over updates and seeds of `time/*` or `memory/*`: a row for each phase, a column for each arm."""
    unit = "_mb" if prefix == "memory" else ""
    names = {f"{prefix}/{phase}{unit}": phase for phase in (*TRAINING, "measure")}
    wide = study.of(*names).pivot_table(index="metric", columns="name", values="value", aggfunc="mean", observed=True)
    wide = wide.rename(index=names)
    return wide.loc[[phase for phase in names.values() if phase in wide.index], study.arms]


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
