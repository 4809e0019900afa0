"""Which baseline is subtracted from the rewards before advantages are made of them.

A baseline of a whole completion stands on its last token, so that it is subtracted once from its return.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bakeoff.batch import Rewards


@dataclass
class Baseline:
    """No baseline."""

    smallest_group = 1
    needs_greedy = False
    needs_steps = False

    def __call__(self, rewards: Rewards) -> Tensor:
        """What to subtract from `rewards.tokens`, [S, T]."""
        return torch.zeros_like(rewards.tokens)


@dataclass
class BatchMean(Baseline):
    """The mean return of the rollout: Williams 1992 §2 calls it reinforcement comparison."""

    def __call__(self, rewards: Rewards) -> Tensor:
        return rewards.totals.mean() * rewards.last


@dataclass
class GroupMean(Baseline):
    """The mean return of the G completions of the same prompt: Shao et al. 2024 (DeepSeekMath) §4.1.2."""

    smallest_group = 2

    def __call__(self, rewards: Rewards) -> Tensor:
        groups = rewards.grouped
        return groups.mean(1, keepdim=True).expand_as(groups).reshape(-1, 1) * rewards.last


@dataclass
class LeaveOneOut(Baseline):
    """The mean return of the *other* completions of the prompt: Kool et al. 2019; Ahmadian et al. 2024 eq. 8."""

    smallest_group = 2

    def __call__(self, rewards: Rewards) -> Tensor:
        groups = rewards.grouped
        others = (groups.sum(1, keepdim=True) - groups) / (rewards.group_size - 1)
        return others.reshape(-1, 1) * rewards.last


@dataclass
class Greedy(Baseline):
    """The score of the prompt's greedy completion, one more that is sampled: Li et al. 2023 (ReMax) eq. 5."""

    needs_greedy = True

    def __call__(self, rewards: Rewards) -> Tensor:
        assert rewards.greedy is not None, "the greedy baseline needs greedy scores"
        return rewards.greedy.repeat_interleave(rewards.group_size)[:, None] * rewards.last


@dataclass
class GroupStepMean(Baseline):
    """The mean of all step rewards of the group, from each of them: DeepSeekMath §4.1.3."""

    needs_steps = True

    def __call__(self, rewards: Rewards) -> Tensor:
        mean, _ = rewards.step_statistics()
        steps = rewards.steps
        return steps.on_tokens(mean[steps.row // rewards.group_size], rewards.mask)
