"""What a token answers for, where every token has a merit of its own: the page of `methods`, and its claims."""

from __future__ import annotations

from bakeoff.report.claim import Claim, difference
from bakeoff.report.pages.methods import table, verdict
from bakeoff.report.study import SAMPLED

__all__ = ["CLAIMS", "NOTEBOOK", "table", "verdict"]
NOTEBOOK = "methods"

CLAIMS = [
    Claim(
        "9 GRPO",
        "Where every token has its own merit (regime credit), a token learns better from its own reward than from all",
        "final sampled accuracy, own reward − whole return",
        difference("own_reward", "whole_return", SAMPLED),
        above=0.0,
    ),
    Claim(
        "9 GRPO",
        "GAE lies above the whole return (regime credit)",
        "final sampled accuracy, GAE − whole return",
        difference("gae", "whole_return", SAMPLED),
        above=0.0,
    ),
]
