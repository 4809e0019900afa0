"""The league of all methods: the page of `methods`, and the claims about TRPO."""

from __future__ import annotations

from bakeoff.report.claim import Claim, ratio
from bakeoff.report.pages.methods import table, verdict
from bakeoff.report.statistics import Estimate, paired_ratio
from bakeoff.report.study import Study
from bakeoff.report.tables import SECONDS, STEP_KL, grouped

__all__ = ["CLAIMS", "NOTEBOOK", "table", "verdict"]
NOTEBOOK = "methods"


def largest_step(study: Study) -> Estimate:
    """The largest KL of an update, TRPO ÷ PPO."""
    steps = grouped(study, STEP_KL).max()
    return paired_ratio(steps["trpo"], steps["ppo"])


BOTH = "algorithm=ppo,trpo"
CLAIMS = [
    Claim("4 TRPO", "Its steps are stable", "largest KL of an update, TRPO ÷ PPO", largest_step, below=1.0, arms=BOTH),
    Claim(
        "4 TRPO",
        "Conjugate gradients are costly",
        "seconds of training, TRPO ÷ PPO",
        ratio("trpo", "ppo", SECONDS),
        above=2.0,
        arms=BOTH,
    ),
]
