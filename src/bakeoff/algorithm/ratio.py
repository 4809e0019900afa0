"""How the probability ratio of policy and behaviour policy is formed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Ratio:
    """What corrects for samples that an older policy drew."""

    def __call__(self, logprobs: Tensor, behaviour: Tensor, mask: Tensor) -> Tensor:
        """Ratio for every token [S, T] from log-probs [S, T]; padding is zero in both; carries gradient."""
        raise NotImplementedError


@dataclass
class TokenRatio(Ratio):
    """π_θ(a_t)/π_old(a_t) of each token: Schulman et al. 2017 §3."""

    def __call__(self, logprobs: Tensor, behaviour: Tensor, mask: Tensor) -> Tensor:
        return (logprobs - behaviour).exp()
