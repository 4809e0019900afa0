"""Quality of a method's gradient and advantages at a fixed policy, measured against many samples.

The policy is the run's start and never moves. A critic is first trained on it alone.
"""

from __future__ import annotations

from dataclasses import replace

from bakeoff.learner.learner import set_lr
from bakeoff.learner.update import update_critic
from bakeoff.loop import Loop, collect, experience_of
from bakeoff.randomness import derive, generator


def with_stream(loop: Loop, stream: str) -> Loop:
    """The loop with prompts and draws of a stream of its own."""
    return replace(loop, collector=replace(loop.collector, seed=derive(loop.collector.seed, stream)))


def train_critic(loop: Loop, updates: int) -> None:
    """Trains a critic of its own on the policy as it is, for that many rollouts; without such a critic, nothing."""
    learner, source = loop.learner, with_stream(loop, "critic")
    if not learner.algorithm.critic.takes_steps:
        return
    for number in range(updates):
        set_lr(learner, number, number / updates)
        collected = collect(source, number)
        experience, _ = experience_of(loop, collected)
        draws = generator(learner.actor.device, source.collector.seed, "minibatches", number)
        with loop.phase("critic_update"):
            update_critic(learner, experience, draws)
