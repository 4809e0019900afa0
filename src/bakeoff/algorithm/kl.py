"""KL divergence: its estimators, its exact value, and the two slots in which a method uses it.

`kl_to_reference` keeps the policy near the model that it started from; `kl_to_behaviour` bounds one update.
Both may adapt their coefficient β, by rules that differ and have different names here. β is state, not
configuration: the learner holds it, starts it at `beta` and checkpoints it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor

from bakeoff.algorithm.divergence import LARGEST_LOG_RATIO, exp_ratio
from bakeoff.batch import masked_mean
from bakeoff.ranges import VAST, count, number
from bakeoff.rows import Scalar


def k1(logprobs: Tensor, other: Tensor) -> Tensor:
    """log(p/q) for samples of p: unbiased for KL(p‖q), may be negative. Schulman 2020, "Approximating KL"."""
    return logprobs - other


def k2(logprobs: Tensor, other: Tensor) -> Tensor:
    """log(p/q)²/2 for samples of p: biased, never negative; its gradient is that of KL(p‖q). Schulman 2020."""
    return 0.5 * (logprobs - other).square()


def k3(logprobs: Tensor, other: Tensor) -> Tensor:
    """q/p − 1 − log(q/p) for samples of p: unbiased for KL(p‖q), never negative. DeepSeekMath eq. 4.

    Flat where q/p is above e^20, as `exp_ratio` is.
    """
    log_ratio = (other - logprobs).clamp(max=LARGEST_LOG_RATIO)
    return torch.expm1(log_ratio) - log_ratio


def exact(logits: Tensor, other_logits: Tensor) -> Tensor:
    """KL(p‖q) in nats over the last axis, from logits [..., V] of p and q; returns [...]."""
    p, q = logits.log_softmax(-1), other_logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


# β at most (ours): Adam keeps the length of a step whatever its coefficient, so a target below the KL of such a step
# would double β until a gradient's norm overflows, after 66 updates
MOST_BETA = 1e6


class Estimator(Enum):
    k1 = "k1"
    k2 = "k2"
    k3 = "k3"

    def __call__(self, logprobs: Tensor, other: Tensor) -> Tensor:
        return {"k1": k1, "k2": k2, "k3": k3}[self.value](logprobs, other)


@dataclass
class KLEstimates:
    """Estimates of KL(p‖q) in nats from samples of p: the mean per token, and the mean over sequences of their sums."""

    k1_per_token: Scalar
    k2_per_token: Scalar
    k3_per_token: Scalar
    k1_per_sequence: Scalar
    k2_per_sequence: Scalar
    k3_per_sequence: Scalar


def estimate_kl(logprobs: Tensor, other: Tensor, mask: Tensor) -> KLEstimates:
    """k1, k2 and k3 of KL(p‖q) from log p and log q [S, T] of p's samples."""
    terms = [torch.where(mask, estimator(logprobs, other), 0.0) for estimator in Estimator]
    return KLEstimates(*(masked_mean(each, mask) for each in terms), *(each.sum(1).mean() for each in terms))


@dataclass
class KLToReference:
    """No KL to the reference. Subclasses override what they use; log-probs are [S, T].

    reads_scores   whether the scores of completions are part of the reward
    """

    reads_scores: ClassVar[bool] = True

    # Without an annotation these are not keys of the configuration; subclasses annotate theirs.
    beta = 0.0
    iteration_updates = 0  # number of updates after which the reference becomes the policy anew; 0: never
    name = ""  # the model that is the reference; empty: the start

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0

    def reward(self, beta: float, behaviour: Tensor, reference: Tensor) -> Tensor:
        """Term added to the reward of every token [S, T]."""
        return torch.zeros_like(behaviour)

    def penalty(self, beta: float, logprobs: Tensor, reference: Tensor, behaviour: Tensor) -> Tensor:
        """Term subtracted from the objective of every token [S, T]; carries gradient."""
        return torch.zeros_like(logprobs)

    def adapt(self, beta: float, nats_per_sequence: float, episodes: int) -> float:
        """β after a rollout of `episodes` sequences whose mean summed k1 was `nats_per_sequence`."""
        return beta


@dataclass
class InReward(KLToReference):
    """−β·k1 on every token, in the reward: Ziegler et al. 2019 §2, Ouyang et al. 2022. β is ours.

    beta   β, the coefficient of the KL; its first value, where it adapts
    """

    beta: float = number(0.01, least=0, most=1000)

    def reward(self, beta: float, behaviour: Tensor, reference: Tensor) -> Tensor:
        return -beta * k1(behaviour, reference)


@dataclass
class Distillation(InReward):
    """The reference is a teacher, and −k1 to it is the whole reward: "On-Policy Distillation", Lu 2025.

    Scores are measured and teach nothing: it minimises the KL(π‖teacher) of the policy's own completions. With
    `advantage: token_reward` each token answers for its own KL alone, as there.

    name   the teacher: a Hugging Face name, or a folder with a causal LM and its tokenizer, which must be the policy's
    """

    reads_scores: ClassVar[bool] = False

    beta: float = number(1.0, above=0, most=1000)
    name: str = ""

    def files(self) -> dict[str, str]:
        """The teacher's name, which may be a folder, by its key."""
        return {"name": self.name} if self.name else {}


@dataclass
class InRewardAdaptive(InReward):
    """β ← β·(1 + clip(KL/target − 1, ±0.2)·n/horizon): the controller of Ziegler et al. 2019 §2.2.

    Its KL is nats per *sequence*; feeding it a per-token mean would be another controller. One update at most halves
    β: where n is several horizons, the formula's β would be negative, a reward for leaving the reference. β is at most
    MOST_BETA (ours).

    target_nats_per_sequence   target of the KL to the reference
    horizon_episodes           number of sequences in which β may grow or fall by a fifth
    """

    beta: float = number(0.1, least=0, most=1000)
    target_nats_per_sequence: float = number(6.0, above=0, most=VAST, unit="nats per sequence")
    horizon_episodes: int = count(10_000, least=1, unit="sequences")

    def adapt(self, beta: float, nats_per_sequence: float, episodes: int) -> float:
        error = min(max(nats_per_sequence / self.target_nats_per_sequence - 1, -0.2), 0.2)
        return min(beta * max(1 + error * episodes / self.horizon_episodes, 0.5), MOST_BETA)


@dataclass
class InLoss(KLToReference):
    """β·KL in the loss. DeepSeekMath eq. 3 and §4.2: k3, β = 0.04.

    k3's gradient is biased, k2's is the KL's own.

    beta              β, the coefficient of the KL
    estimator         estimator of the KL
    ratio_corrected   weighs every term by π_θ/π_old, which makes k3 unbiased in value and gradient, for older samples
                      too: DeepSeek-V3.2 2025 eq. 7
    """

    beta: float = number(0.04, least=0, most=1000)
    estimator: Estimator = Estimator.k3
    ratio_corrected: bool = False

    def penalty(self, beta: float, logprobs: Tensor, reference: Tensor, behaviour: Tensor) -> Tensor:
        weight = exp_ratio(logprobs - behaviour) if self.ratio_corrected else 1.0
        return beta * weight * self.estimator(logprobs, reference)


@dataclass
class InLossIterative(InLoss):
    """KL in the loss, to a reference that becomes the policy at every outer iteration: DeepSeekMath algorithm 1.

    iteration_updates   number of updates of an outer iteration; 64 is ours
    """

    iteration_updates: int = count(64, least=1, unit="updates")


@dataclass
class KLToBehaviour:
    """No KL to the policy that sampled."""

    beta = 0.0  # as above
    adapts = False  # whether β follows the KL of an update, which is then part of training

    def penalty(self, beta: float, logprobs: Tensor, behaviour: Tensor) -> Tensor:
        """Term subtracted from the objective of every token [S, T]; carries gradient."""
        return torch.zeros_like(logprobs)

    def adapt(self, beta: float, nats_per_token: float) -> float:
        """β after an update that ended at a mean KL(π_old‖π_θ) of `nats_per_token`."""
        return beta


@dataclass
class Penalty(KLToBehaviour):
    """β·KL(π_old‖π_θ) with a fixed β: Schulman et al. 2017 §4, "Fixed KL" in table 1.

    The samples are π_old's, so k3 of (π_old, π_θ) is unbiased in value and in gradient.

    beta   β, the coefficient of the KL; its first value, where it adapts
    """

    beta: float = number(1.0, least=0, most=1000)

    def penalty(self, beta: float, logprobs: Tensor, behaviour: Tensor) -> Tensor:
        return beta * k3(behaviour, logprobs)


@dataclass
class AdaptivePenalty(Penalty):
    """β halves below target/1.5 and doubles above 1.5·target: Schulman et al. 2017 §4.

    1.5 and 2 are the paper's; the target is ours (the paper's 0.003 to 0.03 are per state of a robot), and so is the
    bound MOST_BETA.

    target_nats_per_token   target of KL(π_old‖π_θ)
    """

    adapts = True

    beta: float = number(1.0, least=0, most=1000)
    target_nats_per_token: float = number(0.01, above=0, most=VAST, unit="nats per token")

    def adapt(self, beta: float, nats_per_token: float) -> float:
        if nats_per_token < self.target_nats_per_token / 1.5:
            return beta / 2
        if nats_per_token > self.target_nats_per_token * 1.5:
            return min(beta * 2, MOST_BETA)
        return beta
