"""What the studies of a store say of each claim: a table, a sentence and a figure."""

from __future__ import annotations

import math
from collections.abc import Iterable

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from bakeoff.errors import UserError
from bakeoff.report.claims import CLAIMS
from bakeoff.report.figures import laid_out, style
from bakeoff.report.study import Study, load_study
from bakeoff.tracking import Tracking

MISSING = "not tested: an arm of {} is missing"


def verdicts(tracking: Tracking | None = None, held: Iterable[Study] = ()) -> pd.DataFrame:
    """A row a claim: step, claim, study, effect with interval, seeds, rule and verdict.

    Studies that are `held` are not read again. A claim whose study the store does not hold, or not whole, is named as
    not tested, with what is missing.
    """
    studies: dict[str, Study | None] = {study.name: study for study in held}
    rows = []
    for claim in CLAIMS:
        if claim.study not in studies:
            try:
                studies[claim.study] = load_study(claim.study, tracking)
            except UserError:
                studies[claim.study] = None
        study = studies[claim.study]
        value, low, high, seeds, verdict = math.nan, math.nan, math.nan, 0, f"not tested: bakeoff sweeps={claim.study}"
        if study is not None:
            try:
                value, low, high = claim.effect(study)
                seeds = int(study.runs["seed"].nunique())
                verdict = MISSING.format(claim.study) if math.isnan(value) else claim.verdict(low, high)
            except (KeyError, AttributeError, IndexError, ValueError):
                verdict = MISSING.format(claim.study)
        rows.append(
            {
                "step": claim.step,
                "claim": claim.text,
                "study": claim.study,
                "effect": claim.name,
                "value": value,
                "low": low,
                "high": high,
                "seeds": seeds,
                "supported if": claim.rule,
                "verdict": verdict,
            }
        )
    return pd.DataFrame(rows)


def claims_verdict(table: pd.DataFrame) -> str:
    """How many claims are supported, not supported, undecided and not tested, in a sentence."""
    counts = table["verdict"].str.split(":").str[0].value_counts()
    said = ", ".join(
        f"{counts.get(name, 0)} {name}" for name in ("supported", "not supported", "undecided", "not tested")
    )
    return f"Of {len(table)} claims, on one task and one tiny model with few seeds: {said}."


def claims_markdown(table: pd.DataFrame) -> str:
    """The claims as a Markdown table."""
    effects = [
        "–" if math.isnan(row["value"]) else f"{row['value']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"
        for _, row in table.iterrows()
    ]
    shown = table.assign(**{"effect [95 %]": effects})
    columns = ["step", "claim", "effect", "effect [95 %]", "supported if", "verdict", "study"]
    return str(shown[columns].to_markdown(index=False)) + "\n"


VERDICT_SHADES = {"supported": "#009E73", "not supported": "#D55E00", "undecided": "#999999"}


def plot_claims(table: pd.DataFrame) -> Figure:
    """A row a tested claim: effect and 95 % interval on a scale of its own, its bar dashed; coloured by verdict."""
    style()
    rows = table.dropna(subset="value").reset_index(drop=True)
    figure, panels = plt.subplots(
        len(rows), 1, figsize=(9.5, 0.78 * len(rows) + 0.6), squeeze=False, layout="constrained"
    )
    claims = {(claim.text, claim.name): claim for claim in CLAIMS}
    for axes, (_, row) in zip(panels[:, 0], rows.iterrows(), strict=True):
        claim, colour = claims[row["claim"], row["effect"]], VERDICT_SHADES[row["verdict"]]
        axes.axvline(claim.bar, color="0.4", lw=1, ls="--")
        axes.plot([row["low"], row["high"]], [0, 0], color=colour, lw=4, alpha=0.5, solid_capstyle="round")
        axes.plot(row["value"], 0, "o", color=colour, ms=7, mec="white")
        ends = [row["low"], row["high"], row["value"], claim.bar]
        margin = 0.15 * (max(ends) - min(ends)) or 0.1
        axes.set_xlim(min(ends) - margin, max(ends) + margin)
        axes.set_ylim(-1, 1)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.tick_params(labelsize=8)
        title = f"{row['step']}: {row['effect']}. {row['verdict']} ({row['supported if']}; {row['seeds']} seeds)"
        axes.set_title(title, fontsize=8.5, color=colour if colour != "#999999" else "0.35", pad=2)
    return laid_out(figure)
