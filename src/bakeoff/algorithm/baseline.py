"""Which baseline is subtracted from the rewards before advantages are made of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bakeoff.batch import Rewards


@dataclass
class Baseline:
    """No baseline."""

    smallest_group = 1

    def __call__(self, rewards: Rewards) -> Tensor:
        """What to subtract from `rewards.tokens`, [S, T]; zero where nothing was scored."""
        return torch.zeros_like(rewards.tokens)


@dataclass
class GroupMean(Baseline):
    """The mean return of the G completions of the same prompt: Shao et al. 2024 (DeepSeekMath) §4.1.2."""

    smallest_group = 2

    def __call__(self, rewards: Rewards) -> Tensor:
        totals = rewards.totals.view(-1, rewards.group_size)
        return totals.mean(1, keepdim=True).expand_as(totals).reshape(-1, 1) * rewards.scored
