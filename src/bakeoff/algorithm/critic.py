"""Which critic estimates values, and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Critic:
    """No critic."""

    exists = False


@dataclass
class ValueLoss(Critic):
    """What all critics share: the squared error of value against return.

    value_clip    values may move this far from where they were at the rollout; 0 is no clip, 0.2 is
                  Ziegler et al. 2019's code
    head_std      initial standard deviation of the scalar head; 0 starts every value at zero
    """

    exists = True

    value_clip: float = 0.0
    head_std: float = 0.0

    def __call__(self, values: Tensor, old_values: Tensor, returns: Tensor) -> Tensor:
        """½·(V − R)² for every token [S, T], the larger of clipped and unclipped where a clip is set.

        ½ as in Ziegler et al. 2019's code; it only sets the unit of the learning rate.
        """
        loss = 0.5 * (values - returns).square()
        if self.value_clip > 0:
            near = old_values + (values - old_values).clamp(-self.value_clip, self.value_clip)
            loss = torch.maximum(loss, 0.5 * (near - returns).square())
        return loss


@dataclass
class Separate(ValueLoss):
    """A copy of the backbone with a scalar head and an optimiser of its own: Ouyang et al. 2022.

    warmup_updates    so many updates train the critic alone, before the actor moves
    """

    lr: float = 1e-5
    max_gradient_norm: float = 1.0
    warmup_updates: int = 0


@dataclass
class Shared(ValueLoss):
    """A scalar head on the actor's trunk; `coefficient` weighs its loss against the actor's (Ziegler: 0.1)."""

    coefficient: float = 0.1
