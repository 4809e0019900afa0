"""The source of scored completions: prompts of a task, completions by an engine, scores by a reward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from bakeoff import processes
from bakeoff.batch import Example, Prompts, Rollout, Scores
from bakeoff.engine.conversation import converse
from bakeoff.engine.engine import Batch, Engine, Request, Sampling, make_rollout, reader
from bakeoff.model.encode import encode, require_room
from bakeoff.model.policy import Policy
from bakeoff.randomness import derive
from bakeoff.reward.reward import Reward
from bakeoff.rows import select, to_device
from bakeoff.task.task import Task, Verdict

PART = 64  # fewest prompts of a part; parts are independent of the batch, so that a start that they decide is too


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

    @property
    def exact_logprobs(self) -> bool:
        """Whether the log-probs of what it returns serve as log π_old."""
        return self.engine.exact_logprobs and not self.sampling.truncates

    def prompts(self, policy: Policy, examples: list[Example]) -> Prompts:
        """Prompts of the examples, with the task's shots."""
        return encode(policy, examples, self.task.shot_examples())

    def roll_out(
        self, policy: Policy, prompts: Prompts, completions: int, stream: str, step: int = 0, greedy: bool = False
    ) -> Rollout:
        """`completions` of each prompt by the policy that the engine has loaded, of each process those of its share."""
        require_room(policy, prompts, self.task.max_new_tokens)
        own, stop = processes.share(len(prompts.texts)), self.task.stops()
        seed, budget = derive(self.seed, stream, step), self.task.max_new_tokens
        request = Request(select(prompts, own), completions, self.sampling, budget, seed, greedy, stop)
        request.first = own.start * completions
        parts = [self._conversations(policy, request, stream, step)] if own.stop > own.start else []
        if processes.size() == 1:
            return parts[0]
        sent = [replace(part, decode=str) for part in parts]  # a tokenizer is not sent
        return replace(processes.joined(sent, policy.device), decode=reader(policy, stop))

    def _conversations(self, policy: Policy, request: Request, stream: str, step: int) -> Rollout:
        """The engine's rollout; with several turns, the environment's replies are in it: see `converse`."""
        rollout = make_rollout(policy, request, self.engine.generate(request))
        if self.task.most_turns == 1:
            return rollout

        def take_turn(number: int, prompts: Prompts) -> Rollout:
            seed = derive(self.seed, f"{stream}/turn{number}", step)
            later = replace(request, prompts=prompts, completions=1, seed=seed)
            return make_rollout(policy, later, self.engine.generate(later))

        return converse(policy, self.task, rollout, take_turn, partial(self.reward.replies, self.task))

    def answers(
        self,
        policy: Policy,
        examples: list[Example],
        completions: int,
        stream: str,
        step: int = 0,
        greedy: bool = False,
    ) -> Iterator[Rollout]:
        """Rollouts of any number of examples, in parts that need no more memory than an evaluation; see PART."""
        size = max(self.task.heldout, PART)
        for number, at in enumerate(range(0, len(examples), size)):
            prompts = self.prompts(policy, examples[at : at + size])
            part = f"{stream}/{number}" if number else stream
            yield self.roll_out(policy, prompts, completions, part, step, greedy)

    def score(self, rollout: Rollout, learned: Tensor | None = None) -> Scores:
        """Scores of each completion, by the leader, on the rollout's device; `learned` [S] are the reward model's."""
        scores = processes.led(lambda: self.reward(self.task, rollout, learned))
        return to_device(scores, rollout.ended.device)

    def judge(self, rollout: Rollout) -> list[Verdict]:
        """The task's verdict on each completion, by the leader."""
        return processes.led(lambda: self.reward.judge(self.task, rollout.completions, rollout.examples))
