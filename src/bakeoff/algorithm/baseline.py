"""Which baseline is subtracted from the rewards before advantages are made of them.

A baseline of a whole completion stands on its last token, so that it is subtracted once from its return.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bakeoff.batch import Rewards


@dataclass
class Baseline:
    """No baseline.

    smallest_group          minimum number of completions per prompt
    needs_greedy            it reads the score of a greedy completion, which costs one additional completion per prompt
    needs_process_rewards   it reads the scores of steps
    """

    smallest_group: ClassVar[int] = 1
    needs_greedy: ClassVar[bool] = False
    needs_process_rewards: ClassVar[bool] = False

    def __call__(self, rewards: Rewards) -> Tensor:
        """Term to subtract from `rewards.tokens`, [S, T]."""
        return torch.zeros_like(rewards.tokens)


@dataclass
class BatchMean(Baseline):
    """The mean return of the rollout: Williams 1992 §2 calls it reinforcement comparison."""

    def __call__(self, rewards: Rewards) -> Tensor:
        return rewards.totals.mean() * rewards.last


@dataclass
class GroupMean(Baseline):
    """The mean return of the G completions of the same prompt: Shao et al. 2024 (DeepSeekMath) §4.1.2."""

    smallest_group: ClassVar[int] = 2

    def __call__(self, rewards: Rewards) -> Tensor:
        groups = rewards.grouped
        return groups.mean(1, keepdim=True).expand_as(groups).reshape(-1, 1) * rewards.last


@dataclass
class LengthWeightedMean(Baseline):
    """The mean return of the group weighted by length, Σ|o|·R/Σ|o|: Hao et al. 2025 (OPO, arXiv:2505.23585).

    The baseline of least variance, where the squared norm of a completion's gradient grows with its length |o|. Zero
    where the group has no token.
    """

    smallest_group: ClassVar[int] = 2

    def __call__(self, rewards: Rewards) -> Tensor:
        lengths, groups = rewards.mask.sum(1).view(-1, rewards.group_size), rewards.grouped
        mean = (lengths * groups).sum(1) / lengths.sum(1).clamp(min=1)
        return mean.repeat_interleave(rewards.group_size)[:, None] * rewards.last


@dataclass
class LeaveOneOut(Baseline):
    """The mean return of the *other* completions of the prompt: Kool et al. 2019; Ahmadian et al. 2024 eq. 8."""

    smallest_group: ClassVar[int] = 2

    def __call__(self, rewards: Rewards) -> Tensor:
        groups = rewards.grouped
        others = (groups.sum(1, keepdim=True) - groups) / (rewards.group_size - 1)
        return others.reshape(-1, 1) * rewards.last


@dataclass
class Greedy(Baseline):
    """The score of the prompt's greedy completion, which is an additional one: Li et al. 2023 (ReMax) eq. 5."""

    needs_greedy: ClassVar[bool] = True

    def __call__(self, rewards: Rewards) -> Tensor:
        assert rewards.greedy is not None, "the greedy baseline needs greedy scores"
        return rewards.greedy.repeat_interleave(rewards.group_size)[:, None] * rewards.last


@dataclass
class GroupStepMean(Baseline):
    """The mean of all step rewards of the group, from each of them: DeepSeekMath §4.1.3."""

    needs_process_rewards: ClassVar[bool] = True

    def __call__(self, rewards: Rewards) -> Tensor:
        mean, _ = group_step_statistics(rewards)
        steps = rewards.process
        return steps.on_tokens(mean[steps.row // rewards.group_size], rewards.mask)


def group_step_statistics(rewards: Rewards) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (ddof 1) of all step scores of each group, [P] each.

    The deviation is exactly zero where they are all equal, and where there are fewer than two.
    """
    group, score = rewards.process.row // rewards.group_size, rewards.process.score
    zeros = torch.zeros(len(rewards.mask) // rewards.group_size, dtype=score.dtype, device=score.device)
    count = zeros.index_add(0, group, torch.ones_like(score))
    mean = zeros.index_add(0, group, score) / count.clamp(min=1)
    squares = zeros.index_add(0, group, (score - mean[group]).square())
    spread = zeros.scatter_reduce(0, group, score, "amax", include_self=False) > zeros.scatter_reduce(
        0, group, score, "amin", include_self=False
    )
    return mean, torch.where(spread, (squares / (count - 1).clamp(min=1)).sqrt(), 0)
