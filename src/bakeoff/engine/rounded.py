"""The embedded engine on rounded weights, as a fast engine has them: a mismatch of known size, for studies of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bakeoff.engine.embedded import Embedded
from bakeoff.engine.engine import Generated, Request

if TYPE_CHECKING:
    from bakeoff.model.policy import Policy


class Rounding(Enum):
    """How weights are rounded.

    bfloat16   weights and passes are in bfloat16
    int8       each row of a matrix is 255 multiples of one number; passes are in the policy's precision
    """

    bfloat16 = "bfloat16"
    int8 = "int8"


@dataclass
class Rounded(Embedded):
    """Decodes with a rounded copy of the weights, which `load` makes.

    rounding   precision of the copied weights, and with bfloat16 of the passes too
    """

    rounding: Rounding = Rounding.bfloat16

    @torch.no_grad()
    def load(self, policy: Policy) -> None:
        from bakeoff.model.weights import duplicate, weights_version  # late, as it imports transformers

        self._version = weights_version(policy)
        network = duplicate(policy.network)
        if self.rounding is Rounding.bfloat16:
            network = network.to(torch.bfloat16)
        else:
            for weight in network.parameters():
                weight.copy_(to_int8(weight) if weight.dim() == 2 else weight)
        self._policy = replace(policy, network=network)

    @property
    def exact_logprobs(self) -> bool:
        """Never."""
        return False

    def generate(self, request: Request) -> Generated:
        """As the embedded engine does, with the version of the weights that were rounded."""
        return replace(super().generate(request), version=self._version)


def to_int8(weight: Tensor) -> Tensor:
    """The matrix [N, M] with each row rounded to multiples of its largest magnitude ÷ 127."""
    step = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / 127
    return (weight / step).round() * step
