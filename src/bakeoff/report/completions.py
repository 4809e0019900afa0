"""Completions side by side, for a person to read: the same prompt by every arm, and over the updates of training."""

from __future__ import annotations

import html
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from bakeoff.report.figures import MANY
from bakeoff.report.study import Study
from bakeoff.report.tables import in_html, number

UPDATES = 4  # columns
PROMPTS = 3  # of an update
LONGEST = 600  # characters of a text
NONE = "<td>–</td>"


def side_by_side(study: Study) -> str:
    """A table for each of a few prompts as HTML: a row for each arm, a column for each update that answered it.

    Held-out prompts are answered at every evaluation. Prompts of training, which runs of an earlier version logged
    alone, are answered once; arms of one seed still share them.
    """
    rows = study.completions
    if rows.empty:
        return "<p>The runs logged no completions.</p>"
    every = np.unique(rows["update"])
    updates = every[np.unique(np.linspace(0, len(every) - 1, UPDATES).round().astype(int))]
    rows = rows[rows["update"].isin(updates)]
    most = PROMPTS if len(study.arms) > MANY else 2 * PROMPTS
    firsts = [rows["prompt"][rows["update"] == update].drop_duplicates()[:PROMPTS] for update in updates[::-1]]
    prompts = pd.concat(firsts).drop_duplicates()[:most]
    return "\n".join(prompt_table(rows[rows["prompt"] == prompt], study.arms) for prompt in prompts)


def prompt_table(rows: pd.DataFrame, arms: list[str]) -> str:
    """The answers to one prompt."""
    cells = {(row["name"], row["update"]): cell(row) for row in rows.to_dict("records")}
    updates = sorted(rows["update"].unique())
    head = "".join(f"<th>update {update}</th>" for update in updates)
    body = "".join(
        f"<tr><th>{in_html(arm)}</th>{''.join(cells.get((arm, each), NONE) for each in updates)}</tr>"
        for arm in arms
        if any((arm, each) in cells for each in updates)
    )
    asked, expected = (text(rows[column].iloc[0]) for column in ("prompt", "answer"))
    return (
        f"<p><strong>Prompt:</strong> {asked}<br><strong>Answer:</strong> {expected}</p>"
        f'<div class="frame"><table class="completions"><tr><th>arm</th>{head}</tr>{body}</table></div>'
    )


def cell(row: Mapping[Hashable, Any]) -> str:
    """A completion with its score, and whether it was cut off: the verifier's on held-out prompts."""
    cut = "" if str(row["ended"]) == "True" else ", not ended"
    return f"<td>{text(row['completion'])}<br><small>score {number(float(row['reward']))}{cut}</small></td>"


def text(value: object) -> str:
    """A text as HTML shows it literally, with its lines, cut off after LONGEST characters."""
    whole = str(value)
    short = whole if len(whole) <= LONGEST else f"{whole[:LONGEST]} …"
    return "<br>".join(html.escape(line) for line in short.splitlines()) or "<em>nothing</em>"
