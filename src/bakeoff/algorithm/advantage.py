"""How rewards on tokens become advantages, one per token, and the targets of a critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bakeoff.ranges import VAST, number, share


def discounted_sums(terms: Tensor, discount: float | Tensor) -> Tensor:
    """Σ_l discount^l · terms[:, t + l] for every t, [S, T] from [S, T]; one discount, or one for each row [S].

    Token by token from the end: CUDA's cumsum of floats adds in no fixed order, so its results do not repeat.
    """
    sums, running = torch.zeros_like(terms), torch.zeros_like(terms[:, 0])
    for t in reversed(range(terms.shape[1])):
        running = terms[:, t] + discount * running
        sums[:, t] = running
    return sums


@dataclass
class Advantage:
    """Advantage of every token.

    needs_critic   it reads values
    of_sequences   all tokens of a completion have the same advantage
    """

    needs_critic: ClassVar[bool] = False
    of_sequences: ClassVar[bool] = False

    def __call__(self, rewards: Tensor, values: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Advantages and the critic's targets [S, T], none without one.

        From rewards (baseline subtracted), values and mask, all [S, T].
        """
        raise NotImplementedError


@dataclass
class SequenceReturn(Advantage):
    """Every token gets the whole sequence's return: the completion is one action. DeepSeekMath §4.1.2."""

    of_sequences: ClassVar[bool] = True

    def __call__(self, rewards: Tensor, values: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        return torch.where(mask, rewards, 0).sum(1, keepdim=True) * mask, None


@dataclass
class RewardToGo(Advantage):
    """Sum of the rewards from the token on: those that it may have caused. DeepSeekMath §4.1.3 for step rewards.

    gamma   γ, the discount of a token; at 0 a token gets its own reward alone
    """

    gamma: float = share(1.0)

    def __call__(self, rewards: Tensor, values: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        return discounted_sums(torch.where(mask, rewards, 0), self.gamma) * mask, None


@dataclass
class GAE(Advantage):
    """Â_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γ·V_{t+1} − V_t, V = 0 after the end: Schulman et al. 2016 eq. 16.

    The critic's target is Â_t + V_t.

    gamma   γ, the discount of a token
    lam     λ: 1 is unbiased, a lower value has less variance
    """

    needs_critic: ClassVar[bool] = True

    gamma: float = share(1.0)
    lam: float = share(0.95)

    def __call__(self, rewards: Tensor, values: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        return estimate(rewards, values, mask, self.gamma, self.lam, self.lam)


@dataclass
class DecoupledGAE(GAE):
    """GAE in which the critic's target has a λ of its own: Yuan et al. 2025 (VC-PPO, arXiv:2503.01491) §4.2.

    At λ = 1 the critic learns from whole returns, unbiased, whatever λ the actor has.

    lam_critic   λ of the critic's target
    """

    lam_critic: float = share(1.0)

    def __call__(self, rewards: Tensor, values: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        return estimate(rewards, values, mask, self.gamma, self.lam, self.lam_critic)


@dataclass
class LengthAdaptiveGAE(Advantage):
    """GAE whose λ grows with the completion's length |o|, 1 − 1/(α·|o|): Yue et al. 2025 (VAPO, arXiv:2504.05118).

    Zero where |o| is at most 1/α; α = 0.05 is the paper's, for completions of thousands of tokens.

    gamma        γ, the discount of a token
    alpha        α: the memory of λ is α·|o| tokens
    lam_critic   λ of the critic's target
    """

    needs_critic: ClassVar[bool] = True

    gamma: float = share(1.0)
    alpha: float = number(0.05, above=0, most=VAST)
    lam_critic: float = share(1.0)

    def __call__(self, rewards: Tensor, values: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        lengths = mask.sum(1).clamp(min=1).to(rewards.dtype)
        lam = (1 - 1 / (self.alpha * lengths)).clamp(min=0)
        return estimate(rewards, values, mask, self.gamma, lam, self.lam_critic)


def estimate(
    rewards: Tensor, values: Tensor | None, mask: Tensor, gamma: float, lam: float | Tensor, lam_critic: float
) -> tuple[Tensor, Tensor]:
    """GAE's advantages and the critic's targets, [S, T] each; λ may be one for each row [S]."""
    assert values is not None, "GAE needs values"
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + gamma * following - values
    advantages = discounted_sums(deltas, gamma * lam) * mask
    of_critic = advantages if lam is lam_critic else discounted_sums(deltas, gamma * lam_critic) * mask
    return advantages, (of_critic + values) * mask
