"""The variance of a gradient with a baseline and without, where rewards are 0 or 1 and where all are positive."""

from __future__ import annotations

from bakeoff.report.claim import Claim
from bakeoff.report.pages.gradient_quality import covariance_sentence, over_starts, plot, table
from bakeoff.report.study import Study

__all__ = ["CLAIMS", "NOTEBOOK", "plot", "table", "verdict"]
NOTEBOOK = "gradient_quality"

PLAIN, OFFSET = ("mean_plain", "none_plain"), ("mean_offset", "none_offset")


def verdict(study: Study) -> str:
    """Whether the rollout's mean raises or lowers the variance at each start, in both regimes."""
    pairs = [pair for pair in (PLAIN, OFFSET) if set(pair) <= set(study.arms)]
    return "".join(covariance_sentence(study, *pair) for pair in pairs) + "Starts are different policies."


CLAIMS = [
    Claim(
        "3 baseline",
        "With scores of 0 and 1, a baseline lowers the variance of the gradient at every start",
        "trace of the covariance, batch mean ÷ none",
        lambda study: over_starts(study, *PLAIN),
        below=1.0,
        interval="range over starts",
    ),
    Claim(
        "3 baseline",
        "With all-positive rewards (regime offset), a baseline lowers the variance of the gradient at every start",
        "trace of the covariance in regime offset, batch mean ÷ none",
        lambda study: over_starts(study, *OFFSET),
        below=1.0,
        interval="range over starts",
    ),
]
