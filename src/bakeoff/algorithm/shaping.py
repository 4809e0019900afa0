"""Score that a method adds to a completion for its length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bakeoff.ranges import VAST, number


@dataclass
class Shaping:
    """Adds nothing."""

    def __call__(self, lengths: Tensor, max_tokens: int) -> Tensor:
        """Term added to each score [S], from completion lengths [S] in tokens and the generation budget."""
        return torch.zeros_like(lengths, dtype=torch.float32)


@dataclass
class Overlong(Shaping):
    """0 up to the budget less a margin, then linearly down to −penalty: Yu et al. 2025 (DAPO) §3.4, eq. 13.

    margin_share   share of the generation budget that is the margin; the paper has 4096 of 20480 tokens
    penalty        subtracted at the full budget; the paper has 1, for scores of ±1: half of that for scores of 0 and 1
                   (ours)
    """

    margin_share: float = number(0.2, least=0.001, most=1)
    penalty: float = number(0.5, least=0, most=VAST, unit="score")

    def __call__(self, lengths: Tensor, max_tokens: int) -> Tensor:
        margin = self.margin_share * max_tokens
        beyond = (lengths.float() - (max_tokens - margin)) / margin
        return -self.penalty * beyond.clamp(0, 1)
