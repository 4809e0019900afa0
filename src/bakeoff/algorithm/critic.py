"""Which critic estimates values, and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bakeoff.algorithm.step import Adam


@dataclass
class Critic:
    """No critic."""

    exists = False
    warmup_updates = 0


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
class OwnStep(ValueLoss):
    """A critic that takes steps of its own.

    step              its epochs, minibatches and optimiser, apart from the actor's
    warmup_updates    so many updates train the critic alone, before the actor moves
    """

    step: Adam = field(default_factory=lambda: Adam(lr=1e-5))
    warmup_updates: int = 0


@dataclass
class Separate(OwnStep):
    """A copy of the backbone with a scalar head: Ouyang et al. 2022."""


@dataclass
class Adapter(OwnStep):
    """A LoRA role with a scalar head on the run's frozen base: the actor's where that has LoRA, else the reference.

    Hu et al. 2022 for LoRA; Santacroce et al. 2023 (Efficient RLHF) for roles on one base. Rank and alpha are ours.
    """

    rank: int = 16
    alpha: int = 32


@dataclass
class Shared(ValueLoss):
    """A scalar head on the actor's trunk; `coefficient` weighs its loss against the actor's (Ziegler: 0.1)."""

    coefficient: float = 0.1
