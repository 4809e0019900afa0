"""The variance of a gradient with a baseline and without, where rewards are 0 or 1 and where all are positive."""

from __future__ import annotations

from functools import partial

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


def lowered(where: str, effect: str, pair: tuple[str, str]) -> Claim:
    """The claim that the first arm of a pair has the lower variance at every start."""
    text = f"{where}, a baseline lowers the variance of the gradient at every start"
    of = partial(over_starts, a=pair[0], b=pair[1])
    return Claim("3 baseline", text, effect, of, below=1.0, interval="range over starts")


CLAIMS = [
    lowered("With scores of 0 and 1", "trace of the covariance, batch mean ÷ none", PLAIN),
    lowered(
        "With all-positive rewards (regime offset)",
        "trace of the covariance in regime offset, batch mean ÷ none",
        OFFSET,
    ),
]
