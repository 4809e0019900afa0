"""The gradient of small batches against the policy gradient of a large sample: bias, variance, signal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bakeoff.algorithm import AXES, Algorithm
from bakeoff.config import Config
from bakeoff.learner.collect import collect
from bakeoff.learner.experience import make_experience
from bakeoff.learner.state import Counters, Learner, Passes
from bakeoff.learner.update import actor_gradient
from bakeoff.measure import TRAINING
from bakeoff.quality import elsewhere, train_critic

# The policy gradient of the expected score, without bias at any number of samples: RLOO without a penalty.
UNBIASED = {
    "sampling": "once",
    "shaping": "none",
    "critic": "none",
    "baseline": "leave_one_out",
    "advantage": "sequence_return",
    "scale": "none",
    "ratio": "token",
    "objective": "reinforce",
    "kl_to_reference": "none",
    "kl_to_behaviour": "none",
    "aggregate": "sums",
    "step": "adam_once",
}


@dataclass
class Moments:
    """Sums over n gradients [N]: enough for their mean and the trace of their covariance, in two vectors."""

    count: int
    total: Tensor
    squares: float

    @classmethod
    def of(cls, gradients: Iterable[Tensor]) -> Moments:
        """Moments of at least two gradients."""
        count, total, squares = 0, torch.zeros(()), 0.0
        for gradient in gradients:
            count, total, squares = count + 1, total + gradient, squares + float(gradient.square().sum())
        return cls(count, total, squares)

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def variance(self) -> float:
        """The trace of the covariance, without bias (ddof 1)."""
        return (self.squares - float(self.total.square().sum()) / self.count) / (self.count - 1)

    @property
    def signal(self) -> float:
        """‖E g‖² without the bias that the mean's own noise adds; zero where noise hides it."""
        return max(float(self.mean.square().sum()) - self.variance / self.count, 0.0)


def gradient_quality(config: Config, learner: Learner, passes: Passes, say: Callable[[str], None]) -> dict[str, float]:
    """What a method's gradient of one rollout is worth at this policy, under metric names.

    Gradients are of the first step on a rollout, where every ratio is one. Each method has its own scale, so all but
    the norm is free of it. Seconds and tokens are those of a rollout and its gradient; a critic's training is not
    counted.
    """
    say("training the critic" if learner.algorithm.critic.exists else "no critic to train")
    train_critic(config, learner, passes)
    algorithm = Algorithm(**{axis: AXES[axis][option] for axis, option in UNBIASED.items()})
    judge = replace(learner, algorithm=algorithm, critic=None, head=None, critic_optimizer=None, counters=Counters())
    say(f"policy gradient of {config.quality.reference_batches} rollouts")
    reference_config = elsewhere(replace(config, algorithm=algorithm), "policy gradient")
    drawn = gradients(reference_config, judge, passes, config.quality.reference_batches)
    reference = Moments.of(gradient for gradient, _ in drawn)
    truth = reference.mean
    passes.phases.take()
    say(f"gradients of {config.quality.batches} rollouts")
    tokens: list[int] = []
    cosines: list[float] = []
    subject = replace(learner, counters=Counters())

    def judged() -> Iterator[Tensor]:
        for gradient, used in gradients(elsewhere(config, "gradient"), subject, passes, config.quality.batches):
            tokens.append(used)
            cosines.append(cosine(gradient, truth))
            yield gradient

    moments = Moments.of(judged())
    seconds = passes.phases.take().seconds
    spent = sum(seconds.get(phase, 0.0) for phase in TRAINING) / moments.count
    metrics = quality(moments, reference, cosines)
    sampled = sum(tokens) / moments.count
    return metrics | {
        "gradient/tokens": sampled,
        "gradient/seconds": spent,
        "gradient/snr_per_1000_tokens": metrics["gradient/snr"] / sampled * 1000,
        "gradient/snr_per_second": metrics["gradient/snr"] / spent,
    }


def quality(moments: Moments, reference: Moments, cosines: list[float]) -> dict[str, float]:
    """Bias, variance and signal of gradients with these moments, against a reference's; each is free of scale.

    Both means are noisy; what their noise adds to their norms is taken off, which can leave an alignment above one, and
    their draws are independent, so that their product has none.
    """
    norms = (moments.signal * reference.signal) ** 0.5
    alignment = float(moments.mean @ reference.mean) / norms if norms else 0.0
    return {
        "gradient/cosine": sum(cosines) / len(cosines),
        "gradient/alignment": alignment,
        "gradient/bias": max(1 - alignment**2, 0.0) ** 0.5,
        "gradient/relative_variance": moments.variance / moments.signal if moments.signal else float("inf"),
        "gradient/snr": moments.signal / moments.variance if moments.variance else 0.0,  # nothing was ever scored
        "gradient/norm": moments.signal**0.5,
    }


def gradients(config: Config, learner: Learner, passes: Passes, count: int) -> Iterator[tuple[Tensor, int]]:
    """The direction of ascent [N] of so many rollouts, each with the completion tokens that it took."""
    for number in range(count):
        learner.counters.updates = number
        collected = collect(config, learner, passes)
        with passes.phases("experience"):
            experience, _ = make_experience(learner, collected.rollout, collected.scores, collected.greedy, passes)
        with passes.phases("actor_update"):
            actor_gradient(learner, experience, passes, defaultdict(list))
        learned = learner.actor.parameters()
        ascent = [torch.zeros_like(p) if p.grad is None else -p.grad for p in learned]
        learner.actor_optimizer.zero_grad(set_to_none=True)
        yield torch.cat([part.flatten() for part in ascent]), collected.tokens


def cosine(a: Tensor, b: Tensor) -> float:
    """The cosine of the angle between two vectors; zero where the second is zero, or the first but for rounding."""
    return float(a @ b) / float(a.norm() * b.norm()) if a.norm() > 1e-6 * b.norm() > 0 else 0.0
