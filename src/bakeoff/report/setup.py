"""The conditions of a study, as task, model, budget, seeds, commit and date, and the commands that give its page."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from bakeoff.report.naming import shortened
from bakeoff.report.statistics import counted
from bakeoff.report.study import Study
from bakeoff.report.tables import in_html

MOST = 6  # values of a condition that a page lists
TAGS = ("task", "model", "device", "torch", "commit")  # of a run


def setup(study: Study) -> dict[str, str]:
    """Each condition by its name; one that the runs do not say is left out."""
    seeds = [str(seed) for seed in sorted(study.runs["seed"].unique())]
    tuned = study.declared("tuning_seeds").strip("[]")
    counts = [counted(len(study.arms), "arm"), counted(len(study.runs), "finished run")]
    if len(study.unfinished):
        counts.append(f"{len(study.unfinished)} unfinished")
    tags = {tag: listed(study.runs[tag]) for tag in TAGS if tag in study.runs}
    found = {
        "task": tags.get("task", ""),
        "model": tags.get("model", ""),
        "budget of a run": budget(study),
        "runs": ", ".join(counts),
        "seeds": listed(seeds) + (f"; tuned on {tuned}" if tuned else ""),
        "device": tags.get("device", ""),
        "torch": tags.get("torch", ""),
        "commit": tags.get("commit", ""),
        "date (UTC)": " to ".join(dict.fromkeys([min(dates), max(dates)])) if (dates := days(study)) else "",
        "command of the runs": study.command or f"bakeoff sweeps={study.name}",
        "command of this page": study.report or f"bakeoff-report {study.name}",
    }
    return {key: value for key, value in found.items() if value}


def days(study: Study) -> list[str]:
    """The days on which the runs started, in UTC."""
    return [day for day in study.runs["date"] if day] if "date" in study.runs else []


def budget(study: Study) -> str:
    """`65,536 sequences`."""
    keys = study.params.pivot_table(index="run", columns="key", values="value", aggfunc="first")
    if not {"budget.limit", "budget.unit"} <= set(keys.columns):
        return ""
    limits = pd.to_numeric(keys["budget.limit"], errors="coerce").map("{:,.6g}".format)
    return listed(limits + " " + keys["budget.unit"].str.split(".").str[-1])


def listed(values: Iterable[object]) -> str:
    """The values that differ, in their order, at most MOST."""
    different = dict.fromkeys(str(value) for value in values if str(value).strip())
    return ", ".join(shortened(list(different), MOST))


def commands(study: Study) -> str:
    """The commands that make the runs and the page, one a line."""
    made = setup(study)
    return f"{made['command of the runs']}\n{made['command of this page']}"


def setup_html(study: Study) -> str:
    """`setup` as a section of a page, which is Markdown too."""
    cells = {key: in_html(value) for key, value in setup(study).items()}
    cells |= {key: f"<code>{value}</code>" for key, value in cells.items() if "command" in key}
    rows = "".join(f"<tr><th>{key}</th><td>{value}</td></tr>" for key, value in cells.items())
    return f'<h2 id="set-up">Set-up</h2>\n<div class="frame"><table class="setup">{rows}</table></div>'
