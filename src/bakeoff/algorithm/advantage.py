"""How rewards on tokens become advantages, one per token, and the targets of a critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bakeoff.ranges import share


def discounted_sums(terms: Tensor, discount: float) -> Tensor:
    """Σ_l discount^l · terms[:, t + l] for every t, [S, T] from [S, T].

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
        return (rewards * mask).sum(1, keepdim=True) * mask, None


@dataclass
class RewardToGo(Advantage):
    """Sum of the rewards from the token on, which it may have caused. DeepSeekMath §4.1.3 for step rewards."""

    def __call__(self, rewards: Tensor, values: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        return discounted_sums(rewards * mask, 1.0) * mask, None


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
        assert values is not None, "GAE needs values"
        advantages = self.estimate(rewards, values, mask, self.lam)
        return advantages, (advantages + values) * mask

    def estimate(self, rewards: Tensor, values: Tensor, mask: Tensor, lam: float) -> Tensor:
        """Â [S, T] for one λ."""
        rewards, values = rewards * mask, values * mask
        following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
        deltas = rewards + self.gamma * following - values
        return discounted_sums(deltas, self.gamma * lam) * mask


@dataclass
class DecoupledGAE(GAE):
    """GAE in which the critic's target has a λ of its own: Yuan et al. 2025 (VC-PPO, arXiv:2503.01491) §4.2.

    At λ = 1 the critic learns from whole returns, unbiased, whatever λ the actor has.

    lam_critic   λ of the critic's target
    """

    lam_critic: float = share(1.0)

    def __call__(self, rewards: Tensor, values: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        assert values is not None, "GAE needs values"
        targets = self.estimate(rewards, values, mask, self.lam_critic) + values
        return self.estimate(rewards, values, mask, self.lam), targets * mask
