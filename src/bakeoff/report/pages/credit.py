"""What a token answers for, where every token has a merit of its own: the page of `methods`, and its claims."""

from __future__ import annotations

from bakeoff.report.claim import Claim, difference
from bakeoff.report.pages.methods import table, verdict
from bakeoff.report.study import SAMPLED

__all__ = ["CLAIMS", "NOTEBOOK", "table", "verdict"]
NOTEBOOK = "methods"

MERIT = "Where every token has its own merit (regime credit), "
CLAIMS = [
    Claim("9 GRPO", MERIT + text, f"final sampled accuracy, {effect}", difference(*arms, SAMPLED), above=0.0)
    for text, effect, arms in (
        (
            "a token learns better from its own reward than from all of them",
            "own reward − whole return",
            ("own_reward", "whole_return"),
        ),
        ("a token learns better from its own reward than from GAE", "own reward − GAE", ("own_reward", "gae")),
        ("GAE is better than the rewards to go", "GAE − rewards to go", ("gae", "reward_to_go")),
        (
            "the rewards to go are better than the whole return",
            "rewards to go − whole return",
            ("reward_to_go", "whole_return"),
        ),
    )
]
