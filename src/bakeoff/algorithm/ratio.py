"""How the probability ratio of policy and behaviour policy is formed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Ratio:
    """What corrects for samples that an older policy drew."""

    of_sequences = False

    def __call__(self, logprobs: Tensor, behaviour: Tensor, mask: Tensor) -> Tensor:
        """Ratio for every token [S, T] from log-probs [S, T]; padding is zero in both; carries gradient."""
        raise NotImplementedError


@dataclass
class TokenRatio(Ratio):
    """π_θ(a_t)/π_old(a_t) of each token: Schulman et al. 2017 §3."""

    def __call__(self, logprobs: Tensor, behaviour: Tensor, mask: Tensor) -> Tensor:
        return (logprobs - behaviour).exp()


@dataclass
class SequenceRatio(Ratio):
    """π_θ(τ)/π_old(τ) of the whole completion, on each of its tokens: importance sampling as it is defined.

    Unbiased, and with a variance that grows exponentially in the length: Precup et al. 2000.
    """

    of_sequences = True

    def __call__(self, logprobs: Tensor, behaviour: Tensor, mask: Tensor) -> Tensor:
        return (logprobs - behaviour).sum(1, keepdim=True).exp().expand_as(logprobs)


@dataclass
class SequenceMeanRatio(Ratio):
    """The geometric mean of the token ratios, on each token: Zheng et al. 2025 (GSPO, arXiv:2507.18071) eq. 7."""

    of_sequences = True

    def __call__(self, logprobs: Tensor, behaviour: Tensor, mask: Tensor) -> Tensor:
        lengths = mask.sum(1, keepdim=True).clamp(min=1)
        return ((logprobs - behaviour).sum(1, keepdim=True) / lengths).exp().expand_as(logprobs)
