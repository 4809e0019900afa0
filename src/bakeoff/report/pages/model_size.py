"""PPO and GRPO on two sizes of model: the page of `critic`, with an answer for each size."""

from __future__ import annotations

from bakeoff.report.pages.critic import dropping, plot, table
from bakeoff.report.study import Study

__all__ = ["NOTEBOOK", "plot", "table", "verdict"]
NOTEBOOK = "critic"


def verdict(study: Study) -> str:
    """What dropping the critic saves and costs at each setting that the study varies."""
    settings = [name.removeprefix("grpo") for name in study.arms if name.split()[0] == "grpo"]
    return dropping(study, {f"With{each}: ": (f"grpo{each}", f"ppo{each}") for each in settings})
