"""How advantages are brought to a common scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bakeoff.algorithm.baseline import group_step_statistics
from bakeoff.batch import Rewards, masked_mean
from bakeoff.ranges import number


@dataclass
class Scale:
    """Leaves advantages unchanged.

    smallest_group          minimum number of completions per prompt
    needs_process_rewards   it reads the scores of steps
    """

    smallest_group: ClassVar[int] = 1
    needs_process_rewards: ClassVar[bool] = False

    def __call__(self, advantages: Tensor, rewards: Rewards) -> Tensor:
        """Scaled advantages [S, T]; `rewards` are those before the baseline was subtracted."""
        return advantages


@dataclass
class Whiten(Scale):
    """Zero mean and unit (biased) variance over all tokens of the batch, as in PPO for RLHF.

    Ziegler et al. 2019's code; "37 implementation details of PPO" (Huang et al. 2022), detail 7.

    epsilon   added to the variance
    """

    epsilon: float = number(1e-8, least=1e-12, most=1)

    def __call__(self, advantages: Tensor, rewards: Rewards) -> Tensor:
        mask = rewards.mask
        centred = advantages - masked_mean(advantages, mask)
        variance = masked_mean(centred.square(), mask)
        return centred * torch.rsqrt(variance + self.epsilon) * mask


@dataclass
class GroupStd(Scale):
    """Divided by the standard deviation (ddof 1) of the group's returns: DeepSeekMath §4.1.2.

    A group in which all returns are equal gives exactly zero.

    epsilon   added to the deviation; ours, as in most libraries
    """

    smallest_group: ClassVar[int] = 2

    epsilon: float = number(1e-4, least=1e-12, most=1)

    def __call__(self, advantages: Tensor, rewards: Rewards) -> Tensor:
        groups = rewards.grouped
        spread = groups.amax(1) > groups.amin(1)
        factor = spread / (groups.std(1) + self.epsilon)
        return advantages * factor.repeat_interleave(rewards.group_size)[:, None]


@dataclass
class GroupShare(Scale):
    """Divided by the group's mean return: Tajwar et al. 2026 (MaxRL, arXiv:2602.02710).

    With scores of 0 and 1 the mean is the prompt's accuracy: hard prompts weigh more, and with many samples the
    gradient is that of the likelihood of a right answer. It is defined for scores of at least zero: a group whose mean
    return is not above zero gives exactly zero, as one in which all returns are equal does.

    epsilon   added to the mean
    """

    smallest_group: ClassVar[int] = 2

    epsilon: float = number(1e-4, least=1e-12, most=1)

    def __call__(self, advantages: Tensor, rewards: Rewards) -> Tensor:
        groups = rewards.grouped
        mean = groups.mean(1)
        sound = (groups.amax(1) > groups.amin(1)) & (mean > 0)
        factor = torch.where(sound, 1 / (mean.clamp(min=0) + self.epsilon), 0.0)
        return advantages * factor.repeat_interleave(rewards.group_size)[:, None]


@dataclass
class NonzeroShare(Scale):
    """Times completions over completions with a return ≠ 0: Chu et al. 2025 (GPG, arXiv:2504.02546), as in verl.

    The paper counts the completions of groups with spread instead. A group in which all returns are equal gives exactly
    zero, and so does a rollout in which all are zero.
    """

    smallest_group: ClassVar[int] = 2

    def __call__(self, advantages: Tensor, rewards: Rewards) -> Tensor:
        groups, totals = rewards.grouped, rewards.totals
        spread = groups.amax(1) > groups.amin(1)
        factor = spread * len(totals) / (totals != 0).sum().clamp(min=1).to(totals.dtype)
        return advantages * factor.repeat_interleave(rewards.group_size)[:, None]


@dataclass
class BatchStd(Scale):
    """Divided by the standard deviation (ddof 1) of the rollout's returns: Hu et al. 2025 (REINFORCE++) eq. 9.

    A rollout in which all returns are equal gives exactly zero.

    epsilon   added to the deviation
    """

    epsilon: float = number(1e-4, least=1e-12, most=1)

    def __call__(self, advantages: Tensor, rewards: Rewards) -> Tensor:
        totals = rewards.totals
        spread = totals.amax() > totals.amin()
        deviation = totals.std(correction=min(1, len(totals) - 1))  # one return alone: zero, not NaN
        return advantages * spread / (deviation + self.epsilon)


@dataclass
class GroupStepStd(Scale):
    """Divided by the standard deviation (ddof 1) of all step rewards of the group: DeepSeekMath §4.1.3.

    epsilon   added to the deviation
    """

    needs_process_rewards: ClassVar[bool] = True

    epsilon: float = number(1e-4, least=1e-12, most=1)

    def __call__(self, advantages: Tensor, rewards: Rewards) -> Tensor:
        _, std = group_step_statistics(rewards)
        factor = (std > 0) / (std + self.epsilon)
        return advantages * factor.repeat_interleave(rewards.group_size)[:, None]
