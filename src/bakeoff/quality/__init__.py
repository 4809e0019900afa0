"""How good a method's gradient and advantages are at a fixed policy, measured against many samples.

The policy is the run's start and never moves. A critic is first trained on it alone.
"""

from __future__ import annotations

from dataclasses import replace

from bakeoff.algorithm.critic import OwnStep
from bakeoff.config import Config
from bakeoff.learner.collect import collect
from bakeoff.learner.experience import make_experience
from bakeoff.learner.state import Counters, Learner, Passes
from bakeoff.learner.update import update
from bakeoff.randomness import derive, generator


def elsewhere(config: Config, stream: str) -> Config:
    """The configuration with prompts and draws of a stream of its own."""
    return replace(config, seed=derive(config.seed, stream))


def train_critic(config: Config, learner: Learner, passes: Passes) -> None:
    """Trains the critic on the policy as it is, for `quality.critic_updates` rollouts; without a critic, nothing."""
    critic, updates = learner.algorithm.critic, config.quality.critic_updates
    if not isinstance(critic, OwnStep):
        return
    waiting = replace(critic, warmup_updates=updates)  # before that many updates the actor does not move
    pupil = replace(learner, algorithm=replace(learner.algorithm, critic=waiting), counters=Counters())
    data = elsewhere(config, "critic")
    for number in range(updates):
        pupil.counters.updates = number
        pupil.set_lr(number / updates)
        collected = collect(data, pupil, passes)
        experience, _ = make_experience(pupil, collected.rollout, collected.scores, collected.greedy, passes)
        update(pupil, experience, passes, generator(pupil.actor.device, data.seed, "minibatches", number))
