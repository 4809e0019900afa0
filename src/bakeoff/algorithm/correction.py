"""Weights of samples where the sampler is not π_old: an engine that rounds, truncates, or has older weights.

The ratio of `ratio.py` is π_θ/π_old and moves with the update. A correction is π_old/π_sampler, fixed for a rollout,
and multiplies the objective; a token of weight zero stays in the denominator of the aggregation.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from bakeoff.algorithm.divergence import exp_ratio
from bakeoff.ranges import VAST, number


class Level(Enum):
    """Tokens that share a weight.

    token           each has its own: π_old(a_t)/π_sampler(a_t), biased and of little variance
    sequence        those of a completion: the product over its tokens, without bias and of much variance
    sequence_mean   those of a completion: the geometric mean over its tokens
    """

    token = "token"
    sequence = "sequence"
    sequence_mean = "sequence_mean"


class Weights(NamedTuple):
    """The weights of tokens, [S, T] without gradient, and the tokens whose weight is not π_old/π_sampler.

    weight    one on padding
    bounded   bool: the weight is truncated or zero; false on padding
    """

    weight: Tensor
    bounded: Tensor


@dataclass
class Correction:
    """No correction: samples count as those of π_old.

    corrects   whether it weights tokens at all
    """

    corrects: ClassVar[bool] = False

    def __call__(self, behaviour: Tensor, sampler: Tensor, mask: Tensor) -> Weights:
        """The weights of a rollout's tokens, from log π_old and log π_sampler [S, T]."""
        return Weights(torch.ones_like(behaviour), torch.zeros_like(mask))


@dataclass
class Weighted(Correction):
    """c = π_old/π_sampler, which the subclasses bound.

    level   tokens that share a weight: none, each has its own (token); or all of a completion, whose weight is the
            product (sequence) or the geometric mean (sequence_mean) of their ratios
    """

    corrects: ClassVar[bool] = True

    level: Level = Level.token

    def ratio(self, behaviour: Tensor, sampler: Tensor, mask: Tensor) -> Tensor:
        """c [S, T]; one on padding."""
        log_ratio = torch.where(mask, behaviour - sampler, 0.0)
        if self.level is not Level.token:
            tokens = mask.sum(1, keepdim=True).clamp(min=1) if self.level is Level.sequence_mean else 1
            log_ratio = torch.where(mask, log_ratio.sum(1, keepdim=True) / tokens, 0.0)
        return exp_ratio(log_ratio)


@dataclass
class Truncate(Weighted):
    """min(c, C), truncated importance sampling: Ionides 2008; Yao et al. 2025, whose level is the token and C is 2.

    cap   C, the largest weight
    """

    cap: float = number(2.0, above=0, most=VAST)

    def __call__(self, behaviour: Tensor, sampler: Tensor, mask: Tensor) -> Weights:
        ratio = self.ratio(behaviour, sampler, mask)
        return Weights(ratio.clamp(max=self.cap), (ratio > self.cap) & mask)


@dataclass
class Mask(Weighted):
    """c where α ≤ c ≤ β, and zero elsewhere: masked importance sampling, Liu et al. 2025; IcePop, Ling Team 2025.

    least   α: smaller weights become zero; 0 is ours
    most    β: larger weights become zero; 2 is ours
    """

    least: float = number(0.0, least=0, most=VAST)
    most: float = number(2.0, above=0, most=VAST)

    def __call__(self, behaviour: Tensor, sampler: Tensor, mask: Tensor) -> Weights:
        ratio = self.ratio(behaviour, sampler, mask)
        outside = ((ratio < self.least) | (ratio > self.most)) & mask
        return Weights(ratio.masked_fill(outside, 0.0), outside)


@dataclass
class Gate(Weighted):
    """min(c, C) where |π_old − π_sampler| ≤ δ at the token, and zero elsewhere.

    The divergence is that of DPPO (Qi et al. 2026, arXiv:2602.04879): the total variation of the sampled token against
    all others, which a rare token's ratio of two tiny probabilities does not inflate. δ and C are ours.

    delta   δ: a token with a larger difference of its two probabilities has weight zero
    cap     C, the largest weight
    """

    delta: float = number(0.15, above=0, most=1)
    cap: float = number(20.0, above=0, most=VAST)

    def __call__(self, behaviour: Tensor, sampler: Tensor, mask: Tensor) -> Weights:
        ratio = self.ratio(behaviour, sampler, mask)
        shut = ((behaviour.exp() - sampler.exp()).abs() > self.delta) & mask
        return Weights(ratio.clamp(max=self.cap).masked_fill(shut, 0.0), ((ratio > self.cap) & mask) | shut)
