"""The league of all methods: the page of `methods`, and the claims about TRPO."""

from __future__ import annotations

from bakeoff.measure import TRAINING
from bakeoff.report.claim import Claim
from bakeoff.report.pages.methods import table, verdict
from bakeoff.report.statistics import Estimate, paired_ratio
from bakeoff.report.study import Study
from bakeoff.report.tables import STEP_KL, grouped

__all__ = ["CLAIMS", "NOTEBOOK", "table", "verdict"]
NOTEBOOK = "methods"


def largest_step(study: Study) -> Estimate:
    """The largest KL of an update, TRPO ÷ PPO."""
    steps = grouped(study, STEP_KL).max()
    return paired_ratio(steps["trpo"], steps["ppo"])


def update_seconds(study: Study) -> Estimate:
    """Mean training seconds of an update, TRPO ÷ PPO."""
    rows = study.of(*(f"time/{phase}" for phase in TRAINING)).astype({"name": str})
    updates = rows.groupby(["name", "seed", "step"])["value"].sum().groupby(["name", "seed"]).mean()
    return paired_ratio(updates["trpo"], updates["ppo"])


CLAIMS = [
    Claim("4 TRPO", "Its steps are stable", "largest KL of an update, TRPO ÷ PPO", largest_step, below=1.0),
    Claim("4 TRPO", "Conjugate gradients are costly", "seconds of an update, TRPO ÷ PPO", update_seconds, above=2.0),
]
