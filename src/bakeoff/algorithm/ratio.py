"""How the probability ratio of policy and behaviour policy is formed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bakeoff.algorithm.divergence import exp_ratio
from bakeoff.batch import Tokens


@dataclass
class Ratio:
    """Weight that corrects for samples which an older policy drew.

    of_sequences   whether all tokens of a completion have the same ratio
    """

    of_sequences: ClassVar[bool] = False

    def __call__(self, tokens: Tokens) -> Tensor:
        """Ratio of every token, [S, T]; carries gradient."""
        raise NotImplementedError


@dataclass
class TokenRatio(Ratio):
    """π_θ(a_t)/π_old(a_t) of each token: Schulman et al. 2017 §3."""

    def __call__(self, tokens: Tokens) -> Tensor:
        return exp_ratio(tokens.logprobs - tokens.behaviour)


@dataclass
class SequenceRatio(Ratio):
    """π_θ(τ)/π_old(τ) of the whole completion, on each of its tokens: importance sampling as it is defined.

    Unbiased, and with a variance that grows exponentially in the length: Precup et al. 2000.
    """

    of_sequences: ClassVar[bool] = True

    def __call__(self, tokens: Tokens) -> Tensor:
        log_ratio = (tokens.logprobs - tokens.behaviour).sum(1, keepdim=True)
        return exp_ratio(log_ratio).expand_as(tokens.logprobs)


@dataclass
class SequenceMeanRatio(Ratio):
    """The geometric mean of the token ratios, on each token: Zheng et al. 2025 (GSPO, arXiv:2507.18071) eq. 7."""

    of_sequences: ClassVar[bool] = True

    def __call__(self, tokens: Tokens) -> Tensor:
        lengths = tokens.mask.sum(1, keepdim=True).clamp(min=1)
        log_ratio = (tokens.logprobs - tokens.behaviour).sum(1, keepdim=True) / lengths
        return exp_ratio(log_ratio).expand_as(tokens.logprobs)
