"""Which critic estimates values, and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from bakeoff.algorithm.optimizer import Adam
from bakeoff.ranges import VAST, count, number

FACTOR = 10  # of a critic's learning rate over the actor's, where none is set: a head starts at zero
CRITIC_LR = 1e-5  # beside the default rate of actors


@dataclass
class Critic:
    """No critic.

    exists          whether values are estimated
    takes_steps     it has parameters of its own and an optimiser that trains them
    shares_trunk    its values are read from the actor's hidden states, and its loss is part of the actor's
    """

    exists: ClassVar[bool] = False
    takes_steps: ClassVar[bool] = False
    shares_trunk: ClassVar[bool] = False

    warmup_updates = 0  # without an annotation it is not a key; critics that take steps annotate it


@dataclass
class ValueLoss(Critic):
    """The loss that critics share: the squared error of value against return.

    value_clip    largest distance that values may move from where they were at the rollout; 0 is no clip, 0.2 is
                  Ziegler et al. 2019's code
    head_std      initial standard deviation of the scalar head; 0 starts every value at zero
    """

    exists: ClassVar[bool] = True

    value_clip: float = number(0.0, least=0, most=VAST)
    head_std: float = number(0.0, least=0, most=100)

    def __call__(self, values: Tensor, old_values: Tensor, returns: Tensor) -> tuple[Tensor, Tensor | None]:
        """The loss of every token [S, T], and where the clip makes it flat, bool; the latter is none without a clip.

        The loss is ½·(V − R)², the larger of clipped and unclipped where a clip is set. ½ as in Ziegler et al. 2019's
        code; it only sets the unit of the learning rate.
        """
        loss = 0.5 * (values - returns).square()
        if not self.value_clip:
            return loss, None
        near = old_values + (values - old_values).clamp(-self.value_clip, self.value_clip)
        clipped = 0.5 * (near - returns).square()
        return torch.maximum(loss, clipped), clipped > loss


@dataclass
class OwnStep(ValueLoss):
    """A critic that takes steps of its own.

    optimizer         its epochs, minibatches and optimiser, apart from the actor's; its lr, unless set, is ten times
                      the actor's
    warmup_updates    number of updates that train the critic alone, before the actor moves
    """

    takes_steps: ClassVar[bool] = True

    optimizer: Adam = field(default_factory=lambda: Adam(lr=CRITIC_LR))
    warmup_updates: int = count(0, unit="updates")


@dataclass
class Separate(OwnStep):
    """A copy of the backbone with a scalar head: Ouyang et al. 2022."""


@dataclass
class Adapter(OwnStep):
    """A LoRA role with a scalar head on the run's frozen base: the actor's where that has LoRA, else the reference.

    Hu et al. 2022 for LoRA; Santacroce et al. 2023 (Efficient RLHF) for roles on one base. Rank and alpha are ours.

    rank    rank of the adapter
    alpha   alpha / rank scales the adapter's output
    """

    rank: int = count(16, least=1, most=2**16)
    alpha: int = count(32, least=1)


@dataclass
class Shared(ValueLoss):
    """A scalar head on the actor's trunk.

    coefficient   weight of the critic's loss against the actor's; 0.1 in Ziegler et al. 2019
    """

    shares_trunk: ClassVar[bool] = True

    coefficient: float = number(0.1, above=0, most=1000)
