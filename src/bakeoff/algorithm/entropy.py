"""Which bonus the entropy of the policy gets, against its collapse.

A coefficient that adapts is state, not configuration: the learner holds it beside the β of the KL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bakeoff.ranges import VAST, number


@dataclass
class Entropy:
    """No bonus.

    needs_entropy   the loss reads the entropy of π_θ at every token, with its gradient
    adapts          its coefficient follows the entropy of π_old
    """

    needs_entropy: ClassVar[bool] = False
    adapts: ClassVar[bool] = False

    coefficient = 0.0  # without an annotation it is not a key of the configuration; subclasses annotate it

    def bonus(self, coefficient: float, entropy: Tensor) -> Tensor:
        """Term added to the objective of every token [S, T], from the entropy of π_θ there in nats."""
        return coefficient * entropy

    def applied(self, coefficient: float, nats_per_token: float) -> float:
        """The coefficient of an update whose π_old has this mean entropy."""
        return coefficient

    def adapt(self, coefficient: float, nats_per_token: float) -> float:
        """The coefficient after that update."""
        return coefficient


@dataclass
class Bonus(Entropy):
    """c·H(π_θ) of every token: Williams & Peng 1991; Schulman et al. 2017 eq. 9, which has c = 0.01.

    coefficient   c, the weight of the entropy; its first value, where it adapts
    """

    needs_entropy: ClassVar[bool] = True

    coefficient: float = number(0.01, least=0, most=1000)


@dataclass
class Adaptive(Bonus):
    """c rises by a step after every update whose π_old has less entropy than the target, and else falls, not below 0.

    The bonus is c·H while the entropy is at most the target, and else none: He et al. 2025 (Skywork-OR1,
    arXiv:2505.22312), whose values these are.

    target_nats_per_token   target of the entropy
    step                    change of c by one update
    """

    adapts: ClassVar[bool] = True

    coefficient: float = number(0.0, least=0, most=1000)
    target_nats_per_token: float = number(0.2, above=0, most=VAST, unit="nats per token")
    step: float = number(0.005, above=0, most=1000)

    def applied(self, coefficient: float, nats_per_token: float) -> float:
        return coefficient if nats_per_token <= self.target_nats_per_token else 0.0

    def adapt(self, coefficient: float, nats_per_token: float) -> float:
        change = self.step if nats_per_token < self.target_nats_per_token else -self.step
        return max(coefficient + change, 0.0)
