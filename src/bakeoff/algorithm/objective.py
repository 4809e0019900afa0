"""Which surrogate is maximised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Objective:
    """What every token contributes, to be maximised."""

    def __call__(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        """[S, T] from ratio and advantages [S, T]; carries gradient through the ratio."""
        raise NotImplementedError

    def clipped(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        """[S, T] bool: where the surrogate is flat, so that the token has no gradient."""
        return torch.zeros_like(ratio, dtype=torch.bool)


@dataclass
class RatioObjective(Objective):
    """ratio·A, unclipped: Schulman et al. 2017 eq. 6."""

    def __call__(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        return ratio * advantages


@dataclass
class Clip(Objective):
    """min(ratio·A, clip(ratio, 1 − ε_low, 1 + ε_high)·A): Schulman et al. 2017 eq. 7.

    0.2 is that paper's; DeepSeekMath never states the ε of GRPO, and 0.2 is what libraries use.
    """

    epsilon_low: float = 0.2
    epsilon_high: float = 0.2

    def __call__(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        bounded = ratio.clamp(1 - self.epsilon_low, 1 + self.epsilon_high)
        return torch.minimum(ratio * advantages, bounded * advantages)

    def clipped(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        too_high = (ratio > 1 + self.epsilon_high) & (advantages > 0)
        too_low = (ratio < 1 - self.epsilon_low) & (advantages < 0)
        return too_high | too_low
