"""A KL to the start against a reward learned from few pairs: when the true accuracy turns, and what is lost after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bakeoff.report.claim import Claim, difference
from bakeoff.report.comparisons import family
from bakeoff.report.figures import plot_curves
from bakeoff.report.naming import enumerated
from bakeoff.report.pages.rlhf import reward_model_quality
from bakeoff.report.statistics import Estimate, paired_difference
from bakeoff.report.study import SAMPLED, Study
from bakeoff.report.tables import REFERENCE_KL, by_run, estimates, final, start_accuracy, summary

__all__ = ["CLAIMS", "MEASURE", "NOTEBOOK", "overoptimisation", "plot", "reward_model_quality", "table", "verdict"]
NOTEBOOK = "rlhf"
MEASURE = SAMPLED  # what --detect is about


def overoptimisation(study: Study) -> pd.DataFrame:
    """A row for each run: held-out sampled accuracy at the start, at its best and at the end, the update of the best.

    `lost` is the best less the last; `kl` is the KL to the start at the end in nats per sequence.
    """
    points = study.of(SAMPLED).reset_index(drop=True)
    curves = points.groupby(["name", "seed"], sort=False, observed=True)["value"]
    runs = by_run(
        study,
        start=curves.first(),
        best=curves.max(),
        update=curves.idxmax().map(points["step"]),
        end=final(study, SAMPLED),
        kl=final(study, REFERENCE_KL),
    )
    return runs.assign(lost=runs["best"] - runs["end"])


def table(study: Study) -> pd.DataFrame:
    """A row for each arm: accuracies, the update of the best, what is lost after it, and the KL at the end."""
    columns = {
        "start": "true accuracy at start",
        "best": "at its best",
        "update": "best update [95 %]",
        "end": "accuracy at the end [95 %]",
        "lost": "lost [95 %]",
        "kl": "KL to the start (nats/sequence)",
    }
    return summary(overoptimisation(study), {"name": "arm"}, columns)


def verdict(study: Study) -> str:
    """The final true accuracy of each arm, and the pairs that do not differ significantly."""
    found = family(study, SAMPLED)
    ends = ", ".join(f"{mean.text()} with {name}" for name, mean in estimates(study, SAMPLED).items())
    alike = [f"{each.a} and {each.b} ({found.result(each)})" for each in found.comparisons if not each.higher]
    pairs = f"all pairs but {enumerated(alike)}" if alike else "all pairs"
    different = f"Significantly different are {pairs}. {found.note}" if found.comparisons else "Nothing is compared."
    return (
        "Held-out sampled accuracy, which is the true reward, starts at "
        f"{start_accuracy(study, SAMPLED):.3f} and ends at {ends}. {different} "
        "The best of a curve is the largest of several noisy values. One small model, one task, one reward model for "
        "each seed."
    )


def plot(study: Study) -> Figure:
    """The true accuracy over updates."""
    return plot_curves(study, SAMPLED, "Held-out sampled accuracy, the true reward, under a learned one", "share right")


def kept(arm: str) -> Callable[[Study], Estimate]:
    """The final accuracy under an arm less that without a KL, paired by seed."""
    return difference(arm, "none", SAMPLED)


def later(arm: str) -> Callable[[Study], Estimate]:
    """The update of the best accuracy under an arm less that without a KL, paired by seed."""

    def of(study: Study) -> Estimate:
        updates = {
            name: own.set_index("seed")["update"] for name, own in overoptimisation(study).groupby("name", sort=False)
        }
        return paired_difference(updates[arm], updates["none"])

    return of


def claims(place: str, arm: str) -> list[Claim]:
    """That a KL in this place keeps accuracy, and that it delays the turn: an arm against the one without."""
    against = f"GRPO with β = 1 {place} − without a KL"
    about = "Against a reward learned from few pairs (regime proxy), a KL to the start"
    both: dict[str, Any] = {"above": 0.0, "arms": f"arm={arm},none"}
    return [
        Claim("8 RLHF", f"{about} {place} keeps accuracy", f"final sampled accuracy, {against}", kept(arm), **both),
        Claim(
            "8 RLHF", f"{about} {place} delays the turn", f"update of the best accuracy, {against}", later(arm), **both
        ),
    ]


CLAIMS = [*claims("in the loss", "loss_1"), *claims("in the reward", "reward_1")]
