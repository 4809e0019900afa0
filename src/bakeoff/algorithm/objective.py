"""Which surrogate is maximised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bakeoff.algorithm.divergence import exp_ratio
from bakeoff.batch import Tokens, masked_mean
from bakeoff.ranges import VAST, number


@dataclass
class Objective:
    """Contribution of every token, to be maximised.

    fresh_only            its gradient is a policy gradient only for samples of the current policy: one step a rollout
    needs_one_advantage   it is defined for one advantage per completion
    needs_token_ratio     it is defined for one ratio per token
    chooses               it treats some tokens differently, which it chooses among all of the rollout
    """

    fresh_only: ClassVar[bool] = False
    needs_one_advantage: ClassVar[bool] = False
    needs_token_ratio: ClassVar[bool] = False
    chooses: ClassVar[bool] = False

    def choose(self, advantages: Tensor, behaviour: Tensor, mask: Tensor, draws: torch.Generator) -> Tensor | None:
        """The tokens [S, T] bool of the rollout that it treats differently, none where it `chooses` none.

        Once for each rollout, from scaled advantages and log π_old, all [S, T]: minibatches do not matter.
        """
        return None

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        """[S, T] from the ratio [S, T]; carries gradient."""
        raise NotImplementedError

    def clipped(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        """[S, T] bool: tokens on which the surrogate is flat, so that they have no gradient of their own."""
        return torch.zeros_like(ratio, dtype=torch.bool)


@dataclass
class Reinforce(Objective):
    """log π·A: Williams 1992. No ratio corrects for older samples, so it is valid for fresh ones only."""

    fresh_only: ClassVar[bool] = True

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        return tokens.logprobs * tokens.advantages


@dataclass
class RatioObjective(Objective):
    """ratio·A, unclipped: Schulman et al. 2017 eq. 6."""

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        return ratio * tokens.advantages


@dataclass
class TruncatedRatio(Objective):
    """min(ratio, c)·A: less variance for some bias. c = 2 is ours.

    Past c it is flat for either sign of A: its gradient is zero. A truncated weight, as in Ionides 2008, keeps the
    gradient c·A·∇log π there: `cispo` with ε_high = c − 1.

    cap   c, the ratio beyond which a token has no gradient
    """

    cap: float = number(2.0, above=0, most=VAST)

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        return ratio.clamp(max=self.cap) * tokens.advantages

    def clipped(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        return ratio > self.cap


@dataclass
class Clip(Objective):
    """min(ratio·A, clip(ratio, 1 − ε_low, 1 + ε_high)·A): Schulman et al. 2017 eq. 7.

    0.2 is that paper's; DeepSeekMath never states the ε of GRPO, and 0.2 is what libraries use.

    epsilon_low, epsilon_high   distance from 1 at which the ratio is clipped, below and above it
    """

    epsilon_low: float = number(0.2, above=0, most=1)
    epsilon_high: float = number(0.2, above=0, most=VAST)

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        bounded = ratio.clamp(1 - self.epsilon_low, 1 + self.epsilon_high)
        return torch.minimum(ratio * tokens.advantages, bounded * tokens.advantages)

    def clipped(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        too_high = (ratio > 1 + self.epsilon_high) & (tokens.advantages > 0)
        too_low = (ratio < 1 - self.epsilon_low) & (tokens.advantages < 0)
        return too_high | too_low


@dataclass
class DualClip(Clip):
    """Clip's surrogate, where A < 0 no lower than c·A: Ye et al. 2019 (arXiv:1912.09729), c = 3.

    For c ≥ 1 + ε_high it is also min(ratio, δ)·A before the clip, where A < 0, with δ = c: INTELLECT-2 (Prime Intellect
    2025, arXiv:2505.07291), δ = 4.

    cap   c, the ratio beyond which a token with A < 0 has no gradient
    """

    cap: float = number(3.0, above=1, most=VAST)

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        gain = super().__call__(ratio, tokens)
        return torch.where(tokens.advantages < 0, torch.maximum(gain, self.cap * tokens.advantages), gain)

    def clipped(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        return super().clipped(ratio, tokens) | ((ratio > self.cap) & (tokens.advantages < 0))


@dataclass
class SequenceMask(Clip):
    """Clip's surrogate without the completions that the policy has come to avoid: "off-policy sequence masking".

    Where A < 0 and the mean over the completion's tokens of log π_old − log π_θ is above δ, the token counts zero, and
    stays in the denominator: DeepSeek-V3.2 2025 (arXiv:2512.02556). δ is ours, which the paper does not state. A
    completion without tokens is never dropped.

    delta   δ, nats per token
    """

    delta: float = number(0.1, above=0, most=VAST, unit="nats per token")

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        return torch.where(self.dropped(tokens), 0.0, super().__call__(ratio, tokens))

    def clipped(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        return super().clipped(ratio, tokens) | self.dropped(tokens)

    def dropped(self, tokens: Tokens) -> Tensor:
        """[S, T] bool."""
        lengths = tokens.mask.sum(1, keepdim=True).clamp(min=1)
        moved = (tokens.behaviour - tokens.logprobs).detach().sum(1, keepdim=True) / lengths
        return (tokens.advantages < 0) & (moved > self.delta)


@dataclass
class SoftGate(Objective):
    """(4/τ)·σ(τ·(ratio − 1))·A, a gate in the place of the clip: Gao et al. 2025 (SAPO, arXiv:2511.20347).

    On policy its slope is that of ratio·A; it levels off on both sides, and is flat nowhere.

    tau_positive   τ where A > 0
    tau_negative   τ elsewhere: the higher, the sooner it levels off
    """

    tau_positive: float = number(1.0, above=0, most=1000)
    tau_negative: float = number(1.05, above=0, most=1000)

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        tau = torch.full_like(ratio, self.tau_negative).masked_fill(tokens.advantages > 0, self.tau_positive)
        return 4 / tau * torch.sigmoid(tau * (ratio - 1)) * tokens.advantages


@dataclass
class Covariance(RatioObjective):
    """ratio·A, with another rule for few tokens of high covariance: Cui et al. 2025 (arXiv:2505.22617).

    The covariance of a token is (A − mean A)·(log π − mean log π), means over the tokens of the rollout. Log π is that
    of π_old here: the paper's is π_θ's, which is the same in the first step on a rollout.

    share   share of the rollout's tokens that are chosen; at least one token, as in verl
    """

    needs_token_ratio: ClassVar[bool] = True
    chooses: ClassVar[bool] = True

    share: float = number(2e-4, above=0, most=1)

    def choose(self, advantages: Tensor, behaviour: Tensor, mask: Tensor, draws: torch.Generator) -> Tensor | None:
        logprobs, gains = (torch.where(mask, x, 0) - masked_mean(x, mask) for x in (behaviour, advantages))
        order = self.order(torch.where(mask, logprobs * gains, -torch.inf).flatten(), draws)
        count = max(1, int(self.share * mask.sum()))
        return torch.zeros_like(mask).flatten().index_fill(0, order[:count], True).view_as(mask) & mask

    def order(self, covariance: Tensor, draws: torch.Generator) -> Tensor:
        """Numbers of the tokens that may be chosen, the first before the others; padding has covariance −∞."""
        raise NotImplementedError


@dataclass
class ClipCovariance(Covariance):
    """Drops a random share of the tokens whose covariance lies in a range: Cui et al. 2025 (Clip-Cov).

    What is dropped stays in the denominator.

    least   lower end of the range of the covariance
    most    upper end of that range
    """

    least: float = number(1.0, least=-VAST, most=VAST)
    most: float = number(5.0, least=-VAST, most=VAST)

    def order(self, covariance: Tensor, draws: torch.Generator) -> Tensor:
        inside = ((covariance >= self.least) & (covariance <= self.most)).nonzero().squeeze(1)
        return inside[torch.randperm(len(inside), generator=draws, device=draws.device)]

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        gain = super().__call__(ratio, tokens)
        return gain if tokens.chosen is None else torch.where(tokens.chosen, 0.0, gain)

    def clipped(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        return super().clipped(ratio, tokens) if tokens.chosen is None else tokens.chosen


@dataclass
class KLCovariance(Covariance):
    """Subtracts β·|log ratio| on the tokens of the largest covariance: Cui et al. 2025 (KL-Cov).

    beta   β, the weight of the penalty; 1 as in the paper's code
    """

    beta: float = number(1.0, least=0, most=1000)

    def order(self, covariance: Tensor, draws: torch.Generator) -> Tensor:
        return covariance.argsort(descending=True, stable=True)

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        gain = super().__call__(ratio, tokens)
        if tokens.chosen is None:
            return gain
        return gain - self.beta * tokens.chosen * (tokens.logprobs - tokens.behaviour).abs()


@dataclass
class Cispo(Objective):
    """sg(min(ratio, 1 + ε_high))·A·log π: no token loses its gradient. Chen et al. 2025 (MiniMax-M1) eq. 4, 5.

    The paper has no lower bound and does not state ε_high; 0.28 is ours, as for the clip above.

    epsilon_high   distance above 1 at which the ratio is clipped
    """

    epsilon_high: float = number(0.28, above=0, most=VAST)

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        return ratio.detach().clamp(max=1 + self.epsilon_high) * tokens.advantages * tokens.logprobs


@dataclass
class BinaryTotalVariation(Objective):
    """sg(min(ratio, c))·A·log π, dropped where the probability of the token has left a trust region.

    The divergence of two policies is estimated from the sampled token alone, against all others together: their total
    variation is |π_θ − π_old|. A token is dropped where A > 0 and π_θ − π_old > δ, or A < 0 and π_θ − π_old < −δ. Qi et
    al. 2026 (DPPO, arXiv:2602.04879), its binary-TV variant. δ and c are ours.

    delta   δ, the change of a token's probability beyond which it is dropped
    cap     c, the largest weight of a token
    """

    delta: float = number(0.15, above=0, most=1)
    cap: float = number(20.0, above=0, most=VAST)

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        weight = ratio.detach().clamp(max=self.cap) * ~self.clipped(ratio.detach(), tokens)
        return weight * tokens.advantages * tokens.logprobs

    def clipped(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        moved = (tokens.logprobs.exp() - tokens.behaviour.exp()).detach()
        too_likely = (moved > self.delta) & (tokens.advantages > 0)
        too_unlikely = (moved < -self.delta) & (tokens.advantages < 0)
        return too_likely | too_unlikely


@dataclass
class GeometricMean(Objective):
    """A times the geometric mean of a completion's token ratios, each clipped, on every token of it.

    exp(1/|o| Σ_t s·min(s·log r_t, s·clip(log r_t, −ε, ε)))·A with s the sign of A: Zhao et al. 2025 (GMPO,
    arXiv:2507.20673) eq. 4, whose range (e^−0.4, e^0.4) is ε = 0.4. One advantage a completion; the ratio's own value
    is not read. With `aggregate: sequences` a completion counts once.

    epsilon   distance from 0 at which the logarithm of a token's ratio is clipped
    """

    needs_one_advantage: ClassVar[bool] = True

    epsilon: float = number(0.4, above=0, most=100)

    def __call__(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        log_ratio, sign = tokens.logprobs - tokens.behaviour, tokens.advantages.sign()
        bounded = log_ratio.clamp(-self.epsilon, self.epsilon)
        smaller = sign * torch.minimum(sign * log_ratio, sign * bounded)
        lengths = tokens.mask.sum(1, keepdim=True).clamp(min=1)
        return exp_ratio(smaller.sum(1, keepdim=True) / lengths) * tokens.advantages

    def clipped(self, ratio: Tensor, tokens: Tokens) -> Tensor:
        return (tokens.logprobs - tokens.behaviour).detach() * tokens.advantages.sign() > self.epsilon
