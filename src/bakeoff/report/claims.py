"""The page of all claims: a verdict for each, from the studies that a store holds."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from bakeoff.report.claim import Claim
from bakeoff.report.figures import WIDTH, finished, style
from bakeoff.report.page import all_claims, explained
from bakeoff.report.statistics import Estimate, corrected_for, counted
from bakeoff.report.study import Study

TESTED = ("supported", "not supported", "undecided")
VERDICTS = {
    "supported": "#009E73",
    "not supported": "#D55E00",
    "undecided": "#595959",
    "by construction": "#0072B2",
    "measured": "#0072B2",
    "not tested": "#999999",
}


def verdicts(held: Iterable[Study]) -> pd.DataFrame:
    """A row for each claim: step, claim, study, effect with interval, bar, seeds, rule, and verdict.

    Verdicts by intervals over seeds are `corrected` for their number; `alone` is the interval's verdict without it. A
    claim is not tested if its study is missing, or an arm or a metric of it, or if neither arm moved; the verdict then
    says so.
    """
    studies = {study.name: study for study in held}
    rows: list[dict[str, Any]] = []
    tested: dict[int, tuple[Claim, Study]] = {}
    for name, claim in all_claims():
        effect, seeds, verdict = Estimate(), 0, f"not tested: bakeoff sweeps={name}"
        if name in studies:
            seeds = int(studies[name].runs["seed"].nunique())
            try:
                effect = Estimate(*claim.of(studies[name]))
                without = f"not tested: an arm of {name} is missing, or neither of its arms moved"
                verdict = without if math.isnan(effect.value) else claim.verdict(effect)
                if verdict in TESTED and claim.interval == Claim.interval:
                    tested[len(rows)] = claim, studies[name]
            except KeyError as missing:  # an arm, a metric or a parameter, by its name
                verdict = f"not tested: {missing} is missing in {name}"
            except Exception as error:  # a store that lacks more, or a claim of a user's
                verdict = f"not tested: {explained(error)}"
        about = {"step": claim.step, "claim": claim.text, "study": name, "effect": claim.effect}
        judged = {"bar": claim.bar, "seeds": seeds, "rule": claim.rule, "verdict": verdict, "alone": verdict}
        rows.append(about | effect._asdict() | judged)
    for number in tested.keys() - decided(tested):
        rows[number]["verdict"] = "undecided"
    return pd.DataFrame(rows).assign(corrected=[number in tested for number in range(len(rows))])


def decided(tested: dict[int, tuple[Claim, Study]]) -> set[int]:
    """The claims that an interval decides whose confidence is corrected for their number by Holm's method (1979).

    With `left` claims undecided, an interval at 1 − 0.05 ÷ left excludes the bar where p < 0.05 ÷ left.
    """
    found: set[int] = set()
    while left := tested.keys() - found:
        with corrected_for(len(left)):
            more = {n for n in left if tested[n][0].verdict(tested[n][0].of(tested[n][1])) != "undecided"}
        if not more:
            break
        found |= more
    return found


def claims_verdict(table: pd.DataFrame) -> str:
    """The number of claims with each verdict, in a sentence."""
    counts = table["verdict"].str.split(":").str[0].value_counts()
    parts = ", ".join(f"{counts[name]} {name}" for name in VERDICTS if name in counts)
    tested, lost = int(table["corrected"].sum()), int((table["verdict"] != table["alone"]).sum())
    ranges = int(table["verdict"].isin(TESTED).sum()) - tested
    alone = counted(lost, "undecided claim")
    return (
        f"Verdicts on {len(table)} claims: {parts}. A claim by construction follows from the code, so it cannot fail; "
        f"a measured effect has no bar. The verdicts on {tested} are by intervals over seeds, corrected for their "
        f"number (Holm); intervals are not, and by its own interval {alone} would be decided. The verdicts on {ranges} "
        "are by the range over starts. A verdict is about these runs alone, not about language models in general."
    )


def claims_table(table: pd.DataFrame) -> pd.DataFrame:
    """The claims as a page shows them."""
    rows = table[["effect", "value", "low", "high"]].itertuples(index=False)
    return pd.DataFrame(
        {
            "step": table["step"],
            "claim": table["claim"],
            "study": table["study"],
            "effect [95 %]": [f"{effect}: {Estimate(*interval).text()}" for effect, *interval in rows],
            "verdict (supported if)": [
                f"{row.verdict} ({qualified(row)})" if qualified(row) else row.verdict for row in table.itertuples()
            ],
        }
    )


def qualified(row: Any) -> str:
    """The rule of a claim's verdict, and the verdict without the correction where that differs."""
    alone = f"{row.alone} without the correction" if row.alone != row.verdict else ""
    return "; ".join(filter(None, [row.rule, alone]))


def plot_claims(table: pd.DataFrame) -> Figure:
    """A row for each tested claim: effect and 95 % interval on a scale of its own, the bar dashed."""
    style()
    rows = table.dropna(subset="value").reset_index(drop=True)
    figure, panels = plt.subplots(len(rows), 1, figsize=(WIDTH, 0.95 * len(rows) + 0.3), squeeze=False)
    for axes, (_, row) in zip(panels[:, 0], rows.iterrows(), strict=True):
        effect, colour = Estimate(*row[["value", "low", "high"]]), VERDICTS[row["verdict"]]
        if not math.isnan(row["bar"]):
            axes.axvline(row["bar"], color="0.4", lw=1, ls="--")
        axes.plot(effect[1:], [0, 0], color=colour, lw=4, alpha=0.5, solid_capstyle="round")
        axes.plot(effect.value, 0, "o", color=colour, ms=7, mec="white")
        axes.margins(x=0.15)
        axes.set(ylim=(-1, 1), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.tick_params(labelsize=8)
        title = textwrap.fill(f"{row['step']}: {row['effect']}", 75)
        about = "; ".join(filter(None, [qualified(row), counted(row["seeds"], "seed")]))
        axes.set_title(f"{title}\n{row['verdict']} ({about})", color=colour, pad=2)
    return finished(figure, "The effect that each claim is about, with 95 % interval; dashed: its bar.")
