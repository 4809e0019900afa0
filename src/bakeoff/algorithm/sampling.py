"""Which of the sampled groups a method learns from, and how often it samples for more."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Sampling:
    """Every group that was sampled, once.

    rounds   so often prompts are drawn at the most for one update
    """

    rounds = 1
    smallest_group = 1

    def __call__(self, totals: Tensor) -> Tensor:
        """Which groups are kept, [P] bool, from the scores of their completions [P, G]."""
        return torch.ones(len(totals), dtype=torch.bool, device=totals.device)


@dataclass
class Dynamic(Sampling):
    """Groups without spread teach a group baseline nothing: others are sampled in their place, up to a bound.

    Yu et al. 2025 (DAPO, arXiv:2503.14476) §3.2, eq. 11. The bound is ours; what is then still missing is filled with
    groups without spread. All that is sampled counts towards the budget.
    """

    smallest_group = 2

    rounds: int = 3

    def __call__(self, totals: Tensor) -> Tensor:
        return totals.amax(1) > totals.amin(1)
