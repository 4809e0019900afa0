"""Which surrogate is maximised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Objective:
    """What every token contributes, to be maximised.

    fresh_only   its gradient is a policy gradient only for samples of the policy as it is: one step a rollout
    """

    fresh_only = False

    def __call__(self, ratio: Tensor, advantages: Tensor, logprobs: Tensor) -> Tensor:
        """[S, T] from ratio, advantages and log-probs [S, T]; carries gradient."""
        raise NotImplementedError

    def clipped(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        """[S, T] bool: where the surrogate is flat, so that the token has no gradient."""
        return torch.zeros_like(ratio, dtype=torch.bool)


@dataclass
class Reinforce(Objective):
    """log π·A: Williams 1992. No ratio corrects for older samples, so it takes fresh ones only."""

    fresh_only = True

    def __call__(self, ratio: Tensor, advantages: Tensor, logprobs: Tensor) -> Tensor:
        return logprobs * advantages


@dataclass
class RatioObjective(Objective):
    """ratio·A, unclipped: Schulman et al. 2017 eq. 6."""

    def __call__(self, ratio: Tensor, advantages: Tensor, logprobs: Tensor) -> Tensor:
        return ratio * advantages


@dataclass
class TruncatedRatio(Objective):
    """min(ratio, c)·A: a bounded weight, less variance for some bias. Ionides 2008; c = 2 is ours."""

    cap: float = 2.0

    def __call__(self, ratio: Tensor, advantages: Tensor, logprobs: Tensor) -> Tensor:
        return ratio.clamp(max=self.cap) * advantages

    def clipped(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        return ratio > self.cap


@dataclass
class Clip(Objective):
    """min(ratio·A, clip(ratio, 1 − ε_low, 1 + ε_high)·A): Schulman et al. 2017 eq. 7.

    0.2 is that paper's; DeepSeekMath never states the ε of GRPO, and 0.2 is what libraries use.
    """

    epsilon_low: float = 0.2
    epsilon_high: float = 0.2

    def __call__(self, ratio: Tensor, advantages: Tensor, logprobs: Tensor) -> Tensor:
        bounded = ratio.clamp(1 - self.epsilon_low, 1 + self.epsilon_high)
        return torch.minimum(ratio * advantages, bounded * advantages)

    def clipped(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        too_high = (ratio > 1 + self.epsilon_high) & (advantages > 0)
        too_low = (ratio < 1 - self.epsilon_low) & (advantages < 0)
        return too_high | too_low


@dataclass
class Cispo(Objective):
    """sg(min(ratio, 1 + ε_high))·A·log π: no token loses its gradient. Chen et al. 2025 (MiniMax-M1) eq. 4, 5.

    The paper has no lower bound and does not state ε_high; 0.28 is ours, as for the clip above.
    """

    epsilon_high: float = 0.28

    def __call__(self, ratio: Tensor, advantages: Tensor, logprobs: Tensor) -> Tensor:
        return ratio.detach().clamp(max=1 + self.epsilon_high) * advantages * logprobs
