"""The rewards, by the name that `reward.functions` and `reward.process` take, beside functions of a user."""

from __future__ import annotations

from bakeoff.reward.reward import PROCESS_REWARDS, REWARDS

__all__ = ["PROCESS_REWARDS", "REWARDS"]
