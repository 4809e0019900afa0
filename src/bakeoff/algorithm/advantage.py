"""How rewards on tokens become advantages, one a token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Advantage:
    """How good a token was."""

    needs_critic = False

    def __call__(self, rewards: Tensor, values: Tensor | None, mask: Tensor) -> Tensor:
        """Advantages [S, T] from rewards [S, T] (baseline subtracted), values [S, T] and mask [S, T]."""
        raise NotImplementedError


@dataclass
class SequenceReturn(Advantage):
    """Every token gets the whole sequence's return: the completion is one action. DeepSeekMath §4.1.2."""

    def __call__(self, rewards: Tensor, values: Tensor | None, mask: Tensor) -> Tensor:
        return (rewards * mask).sum(1, keepdim=True) * mask


@dataclass
class GAE(Advantage):
    """Â_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γ·V_{t+1} − V_t, V = 0 after the end: Schulman et al. 2016 eq. 16."""

    needs_critic = True

    gamma: float = 1.0
    lam: float = 0.95

    def __call__(self, rewards: Tensor, values: Tensor | None, mask: Tensor) -> Tensor:
        assert values is not None, "GAE needs values"
        rewards, values = rewards * mask, values * mask
        following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
        deltas = rewards + self.gamma * following - values
        advantages = torch.zeros_like(deltas)
        running = torch.zeros_like(deltas[:, 0])
        for t in reversed(range(deltas.shape[1])):
            running = deltas[:, t] + self.gamma * self.lam * running
            advantages[:, t] = running
        return advantages * mask
