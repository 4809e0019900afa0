"""Which surrogate is maximised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bakeoff.algorithm.divergence import exp_ratio
from bakeoff.batch import Tokens
from bakeoff.ranges import VAST, number


@dataclass
class Objective:
    """Contribution of every token, to be maximised.

    fresh_only            its gradient is a policy gradient only for samples of the current policy: one step a rollout
    needs_one_advantage   it is defined for one advantage per completion
    """

    fresh_only: ClassVar[bool] = False
    needs_one_advantage: ClassVar[bool] = False

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        """[S, T] from the ratio [S, T]; carries gradient."""
        raise NotImplementedError

    def clipped(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        """[S, T] bool: tokens on which the surrogate is flat, so that they have no gradient of their own."""
        return torch.zeros_like(ratio, dtype=torch.bool)


@dataclass
class Reinforce(Objective):
    """log π·A: Williams 1992. No ratio corrects for older samples, so it takes fresh ones only."""

    fresh_only: ClassVar[bool] = True

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        return tokens.logprobs * tokens.advantages


@dataclass
class RatioObjective(Objective):
    """ratio·A, unclipped: Schulman et al. 2017 eq. 6."""

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        return ratio * tokens.advantages


@dataclass
class TruncatedRatio(Objective):
    """min(ratio, c)·A: a bounded weight, less variance for some bias. Ionides 2008; c = 2 is ours.

    cap   c, the largest weight of a token
    """

    cap: float = number(2.0, above=0, most=VAST)

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        return ratio.clamp(max=self.cap) * tokens.advantages

    def clipped(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        return ratio > self.cap


@dataclass
class Clip(Objective):
    """min(ratio·A, clip(ratio, 1 − ε_low, 1 + ε_high)·A): Schulman et al. 2017 eq. 7.

    0.2 is that paper's; DeepSeekMath never states the ε of GRPO, and 0.2 is what libraries use.

    epsilon_low, epsilon_high   distance from 1 at which the ratio is clipped, below and above it
    """

    epsilon_low: float = number(0.2, above=0, most=1)
    epsilon_high: float = number(0.2, above=0, most=VAST)

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        bounded = ratio.clamp(1 - self.epsilon_low, 1 + self.epsilon_high)
        return torch.minimum(ratio * tokens.advantages, bounded * tokens.advantages)

    def clipped(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        too_high = (ratio > 1 + self.epsilon_high) & (tokens.advantages > 0)
        too_low = (ratio < 1 - self.epsilon_low) & (tokens.advantages < 0)
        return too_high | too_low


@dataclass
class Cispo(Objective):
    """sg(min(ratio, 1 + ε_high))·A·log π: no token loses its gradient. Chen et al. 2025 (MiniMax-M1) eq. 4, 5.

    The paper has no lower bound and does not state ε_high; 0.28 is ours, as for the clip above.

    epsilon_high   distance above 1 at which the ratio is clipped
    """

    epsilon_high: float = number(0.28, above=0, most=VAST)

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        return ratio.detach().clamp(max=1 + self.epsilon_high) * tokens.advantages * tokens.logprobs


@dataclass
class BinaryTotalVariation(Objective):
    """sg(min(ratio, c))·A·log π, dropped where the probability of the token has left a trust region.

    The divergence of two policies is estimated from the sampled token alone, against all others together: their total
    variation is |π_θ − π_old|. A token is dropped where A > 0 and π_θ − π_old > δ, or A < 0 and π_θ − π_old < −δ. Qi et
    al. 2026 (DPPO, arXiv:2602.04879), its binary-TV variant. δ and c are ours.

    delta   δ, the change of a token's probability beyond which it is dropped
    cap     c, the largest weight of a token
    """

    delta: float = number(0.15, above=0, most=1)
    cap: float = number(20.0, above=0, most=VAST)

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        weight = ratio.detach().clamp(max=self.cap) * ~self.clipped(ratio.detach(), tokens)
        return weight * tokens.advantages * tokens.logprobs

    def clipped(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        moved = (tokens.logprobs.exp() - tokens.behaviour.exp()).detach()
        too_likely = (moved > self.delta) & (tokens.advantages > 0)
        too_unlikely = (moved < -self.delta) & (tokens.advantages < 0)
        return too_likely | too_unlikely


@dataclass
class GeometricMean(Objective):
    """A times the geometric mean of a completion's token ratios, each clipped, on every token of it.

    exp(1/|o| Σ_t s·min(s·log r_t, s·clip(log r_t, −ε, ε)))·A with s the sign of A: Zhao et al. 2025 (GMPO,
    arXiv:2507.20673) eq. 4, whose range (e^−0.4, e^0.4) is ε = 0.4. One advantage a completion; the ratio's own value
    is not read. With `aggregate: sequences` a completion counts once.

    epsilon   distance from 0 at which the logarithm of a token's ratio is clipped
    """

    needs_one_advantage: ClassVar[bool] = True

    epsilon: float = number(0.4, above=0, most=100)

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        log_ratio, sign = tokens.logprobs - tokens.behaviour, tokens.advantages.sign()
        bounded = log_ratio.clamp(-self.epsilon, self.epsilon)
        smaller = sign * torch.minimum(sign * log_ratio, sign * bounded)
        lengths = tokens.mask.sum(1, keepdim=True).clamp(min=1)
        return exp_ratio(smaller.sum(1, keepdim=True) / lengths) * tokens.advantages

    def clipped(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        return (tokens.logprobs - tokens.behaviour).detach() * tokens.advantages.sign() > self.epsilon
