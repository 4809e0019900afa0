"""What is subtracted from the return: the page of `methods`, and the claims about REINFORCE and its baselines."""

from __future__ import annotations

from bakeoff.report.claim import Claim, difference
from bakeoff.report.pages.methods import table, verdict
from bakeoff.report.pages.sample_reuse import sampling_share
from bakeoff.report.statistics import share_interval
from bakeoff.report.study import SAMPLED

__all__ = ["CLAIMS", "NOTEBOOK", "table", "verdict"]
NOTEBOOK = "methods"

CLAIMS = [
    Claim(
        "1 REINFORCE",
        "With fresh samples for every update, sampling takes this share of the time, for answers this short",
        "share of training time in sampling",
        lambda study: share_interval(sampling_share(study)["baseline_none"]),
    ),
    Claim(
        "3 baseline",
        "A baseline learns better, with scores of 0 and 1",
        "final sampled accuracy, batch mean − none",
        difference("baseline_batch_mean", "baseline_none", SAMPLED),
        above=0.0,
    ),
]
