"""The gradient of small batches against the policy gradient of a large sample: bias, variance, signal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bakeoff.algorithm import AXES, Algorithm
from bakeoff.config import Quality
from bakeoff.learner.update import actor_gradient
from bakeoff.loop import Loop, collect, experience_of
from bakeoff.measure import TRAINING
from bakeoff.quality import train_critic, with_stream

# The policy gradient of the expected score, without bias at any number of samples: RLOO without a penalty.
UNBIASED = {
    **{"baseline": "leave_one_out", "advantage": "sequence_return", "ratio": "token"},
    **{"objective": "reinforce", "aggregate": "sums", "optimizer": "adam_once"},
}  # and `none` on the other axes


@dataclass
class Moments:
    """Sums over at least two gradients [N]: enough for their mean and the trace of their covariance."""

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: float = 0.0

    def add(self, gradient: Tensor) -> None:
        self.count, self.total = self.count + 1, self.total + gradient
        self.squares += float(gradient.square().sum())

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


@dataclass
class GradientQuality:
    """Quality of the gradient of one rollout; all but the norm is free of the method's scale.

    The fields are the metrics `gradient/…`, which metrics.py defines.
    """

    cosine: float
    alignment: float
    bias: float
    relative_variance: float
    snr: float
    norm: float
    tokens: float
    seconds: float
    snr_per_1000_tokens: float
    snr_per_second: float


def gradient_quality(loop: Loop, sizes: Quality, report: Callable[[str], None]) -> GradientQuality:
    """Quality of the method's gradient of one rollout at the policy of the loop.

    Gradients are of the first step on a rollout, where every ratio is one.
    """
    report("training the critic" if loop.learner.algorithm.critic.exists else "no critic to train")
    train_critic(loop, sizes.critic_updates)
    algorithm = Algorithm(**{axis: options[UNBIASED.get(axis, "none")] for axis, options in AXES.items()})
    unbiased = replace(loop.learner, algorithm=algorithm, critic=None, head=None, critic_optimizer=None)
    report(f"policy gradient of {sizes.reference_batches} rollouts")
    source = with_stream(replace(loop, learner=unbiased), "policy gradient")
    moments, reference, cosines, tokens = Moments(), Moments(), [], 0
    for gradient, _ in gradients(source, sizes.reference_batches):
        reference.add(gradient)
    truth = reference.mean
    loop.phases.take()
    report(f"gradients of {sizes.batches} rollouts")
    for gradient, used in gradients(with_stream(loop, "gradient"), sizes.batches):
        moments.add(gradient)
        cosines.append(cosine(gradient, truth))
        tokens += used
    seconds = loop.phases.take().seconds
    spent = sum(seconds.get(phase, 0.0) for phase in TRAINING) / moments.count
    return quality(moments, reference, cosines, tokens / moments.count, spent)


def quality(
    moments: Moments, reference: Moments, cosines: list[float], tokens: float, seconds: float
) -> GradientQuality:
    """Bias, variance and signal of gradients with these moments, against a reference's.

    Both means are noisy. Their squared norms are corrected for noise, which can leave an alignment above one; their
    draws are independent, so that their inner product needs no correction.
    """
    norms = (moments.signal * reference.signal) ** 0.5
    alignment = float(moments.mean @ reference.mean) / norms if norms else 0.0
    snr = moments.signal / moments.variance if moments.variance else 0.0  # no completion was ever scored
    return GradientQuality(
        cosine=sum(cosines) / len(cosines),
        alignment=alignment,
        bias=max(1 - alignment**2, 0.0) ** 0.5,
        relative_variance=moments.variance / moments.signal if moments.signal else float("inf"),
        snr=snr,
        norm=moments.signal**0.5,
        tokens=tokens,
        seconds=seconds,
        snr_per_1000_tokens=snr / tokens * 1000,
        snr_per_second=snr / seconds,
    )


def gradients(loop: Loop, count: int) -> Iterator[tuple[Tensor, int]]:
    """The direction of ascent [N] of each of `count` rollouts, with the number of completion tokens that it took."""
    learner = loop.learner
    for number in range(count):
        collected = collect(loop, number)
        experience, _ = experience_of(loop, collected)
        with loop.phase("actor_update"):
            actor_gradient(learner, experience)
        ascent = [torch.zeros_like(p) if p.grad is None else -p.grad for p in learner.trained()["actor"].values()]
        learner.actor_optimizer.zero_grad(set_to_none=True)
        yield torch.cat([part.flatten() for part in ascent]), collected.tokens


def cosine(a: Tensor, b: Tensor) -> float:
    """The cosine of the angle between two vectors; zero where the second is zero, or the first but for rounding."""
    return float(a @ b) / float(a.norm() * b.norm()) if a.norm() > 1e-6 * b.norm() > 0 else 0.0
