"""The rewards, by the name in `reward.functions` and `reward.process`, where functions of a user may stand too."""

from __future__ import annotations

from bakeoff.reward.reward import PROCESS_REWARDS, REWARDS

__all__ = ["PROCESS_REWARDS", "REWARDS"]
