"""The league of all methods: the page of `methods`, and the claims about TRPO."""

from __future__ import annotations

import pandas as pd

from bakeoff.measure import TRAINING
from bakeoff.report.claim import Claim
from bakeoff.report.pages.methods import table, verdict
from bakeoff.report.statistics import paired_ratio
from bakeoff.report.study import Study

__all__ = ["CLAIMS", "NOTEBOOK", "table", "verdict"]
NOTEBOOK = "methods"


def largest_step(study: Study, name: str) -> pd.Series:
    """The largest KL of an update of each run, by seed."""
    rows = study.of("kl/behaviour_k3_per_token")
    return rows[rows["name"] == name].groupby("seed")["value"].max()


def update_seconds(study: Study, name: str) -> pd.Series:
    """Mean training seconds of an update of each run, by seed."""
    rows = study.of(*(f"time/{phase}" for phase in TRAINING))
    return rows[rows["name"] == name].groupby(["seed", "step"])["value"].sum().groupby("seed").mean()


CLAIMS = [
    Claim(
        "4 TRPO",
        "Its steps are stable",
        "largest KL of an update, TRPO ÷ PPO",
        lambda study: paired_ratio(largest_step(study, "trpo"), largest_step(study, "ppo")),
        below=1.0,
    ),
    Claim(
        "4 TRPO",
        "Conjugate gradients are costly",
        "seconds of an update, TRPO ÷ PPO",
        lambda study: paired_ratio(update_seconds(study, "trpo"), update_seconds(study, "ppo")),
        above=2.0,
    ),
]
