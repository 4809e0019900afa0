"""The rewards, by the name that `reward.functions` and `reward.process` take, beside import paths of user functions."""

from __future__ import annotations

from bakeoff.reward.reward import PROCESS_REWARDS, REWARDS

__all__ = ["PROCESS_REWARDS", "REWARDS"]
