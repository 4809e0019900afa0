"""The source of scored completions: prompts of a task, completions by an engine, scores by a reward."""

from __future__ import annotations

from dataclasses import dataclass

from bakeoff.batch import Example, Rollout
from bakeoff.engine.engine import Batch, Engine, Sampling, roll_out
from bakeoff.model.encode import encode, require_room
from bakeoff.model.policy import Policy
from bakeoff.randomness import derive
from bakeoff.reward.reward import Reward
from bakeoff.task.task import Task


@dataclass
class Collector:
    """Everything that decides what a policy is asked, how it answers, and how answers are scored; never the method.

    seed   prompts and draws are functions of it, of a stream and of a step
    """

    task: Task
    engine: Engine
    batch: Batch
    sampling: Sampling
    reward: Reward
    seed: int

    def roll_out(
        self,
        policy: Policy,
        examples: list[Example],
        completions: int,
        stream: str,
        step: int = 0,
        greedy: bool = False,
    ) -> Rollout:
        """`completions` of each example's prompt by the policy that the engine has loaded."""
        prompts = encode(policy, examples, self.task.shot_examples())
        require_room(policy, prompts, self.task.max_new_tokens)
        seed, budget = derive(self.seed, stream, step), self.task.max_new_tokens
        return roll_out(self.engine, policy, prompts, completions, self.sampling, budget, seed, greedy)
