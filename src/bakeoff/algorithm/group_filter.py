"""Which of the sampled groups a method learns from, and how many times it samples for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bakeoff.ranges import count


@dataclass
class GroupFilter:
    """Keeps every group: prompts are drawn once for each update."""

    smallest_group: ClassVar[int] = 1

    rounds = 1  # without an annotation it is not a key of the configuration; subclasses annotate it

    def __call__(self, totals: Tensor) -> Tensor:
        """Which groups are kept, [P] bool, from the scores of their completions [P, G]."""
        return torch.ones(len(totals), dtype=torch.bool, device=totals.device)


@dataclass
class Dynamic(GroupFilter):
    """Drops groups whose scores are all equal, which teach a group baseline nothing, and samples others instead.

    Yu et al. 2025 (DAPO, arXiv:2503.14476) §3.2, eq. 11. If groups are still missing after the last round, dropped
    ones fill up the batch. All that is sampled counts towards the budget.

    rounds   maximum number of times that prompts are drawn for one update; the bound is ours
    """

    smallest_group: ClassVar[int] = 2

    rounds: int = count(3, least=1, most=1000, unit="draws")

    def __call__(self, totals: Tensor) -> Tensor:
        return totals.amax(1) > totals.amin(1)
