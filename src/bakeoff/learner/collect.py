"""From the policy to scored completions: sampled once, or until the method has groups that it can learn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bakeoff.batch import Rollout, Scores, group_rows
from bakeoff.config import Config
from bakeoff.joining import join_rollouts, join_scores
from bakeoff.learner.state import Learner, Passes
from bakeoff.measure.phase import Phases
from bakeoff.model.load import Policy, encode
from bakeoff.randomness import generator, stdlib_random


@dataclass
class Collected:
    """What one update samples.

    rollout, scores           what it learns from
    all_rollouts, all_scores  all that was sampled for that: the same, unless the method chose among groups
    greedy                    [P] scores of the greedy completions, none where no baseline asks for them
    sequences, tokens         completions and their tokens in all, greedy ones included: what the budget counts
    rounds                    how often prompts were drawn
    """

    rollout: Rollout
    scores: Scores
    all_rollouts: Rollout
    all_scores: Scores
    greedy: Tensor | None
    sequences: int
    tokens: int
    rounds: int


def collect(config: Config, learner: Learner, passes: Passes) -> Collected:
    """Samples and scores one update's completions. Prompts and draws are functions of seed, update and round."""
    algorithm, sampler, task = config.algorithm, config.rollout, config.task
    policy, update, phases = learner.actor, learner.counters.updates, passes.phases
    learned = learned_scores(learner, passes)
    rollouts: list[Rollout] = []
    scores: list[Scores] = []
    kept: list[Tensor] = []
    while len(rollouts) < algorithm.sampling.rounds and sum(int(k.sum()) for k in kept) < sampler.prompts:
        stream = f"/{len(rollouts)}" if rollouts else ""
        with phases("rollout"):
            examples = task.training_examples(sampler.prompts, stdlib_random(config.seed, f"prompts{stream}", update))
            prompts = encode(policy, examples, task.shot_examples())
            draws = generator(policy.device, config.seed, f"rollout{stream}", update)
            rollouts.append(sampler(policy, prompts, sampler.group_size, task.max_new_tokens, draws))
        with phases("reward"):
            scores.append(config.reward(task, rollouts[-1], learned))
            kept.append(algorithm.sampling(scores[-1].total.view(-1, sampler.group_size)))
    every, all_scores = join_rollouts(rollouts, policy.tokenizer.pad_token_id), join_scores(scores)
    rollout, chosen = every, all_scores
    if len(rollouts) > 1:
        # Kept groups first, in the order in which they were sampled; what is missing is filled with others.
        order = torch.argsort(torch.cat(kept).int(), descending=True, stable=True)[: sampler.prompts]
        rollout, chosen = every.groups(order), all_scores.rows(group_rows(order, sampler.group_size))
    sequences, tokens = len(every.sequences), int(every.sequences.mask.sum())
    greedy = None
    if algorithm.baseline.needs_greedy:
        answers, greedy = greedy_scores(config, policy, rollout, phases, learned)
        sequences, tokens = sequences + len(answers.sequences), tokens + int(answers.sequences.mask.sum())
    return Collected(rollout, chosen, every, all_scores, greedy, sequences, tokens, len(rollouts))


def learned_scores(learner: Learner, passes: Passes) -> Callable[[Rollout], Tensor] | None:
    """The reward model as a function of rollouts, none where the reward is not learned."""
    model = learner.reward_model
    return None if model is None else lambda rollout: model.score(rollout.sequences, passes.micro_batch)


def greedy_scores(
    config: Config, policy: Policy, rollout: Rollout, phases: Phases, learned: Callable[[Rollout], Tensor] | None
) -> tuple[Rollout, Tensor]:
    """One greedy completion of each prompt of the rollout, and its score as the method sees it [P]."""
    with phases("rollout"):
        prompts = encode(policy, rollout.examples, config.task.shot_examples())
        draws = generator(policy.device, config.seed, "greedy")
        answers = config.rollout(policy, prompts, 1, config.task.max_new_tokens, draws, greedy=True)
    with phases("reward"):
        shaped = config.algorithm.shaping(answers.sequences.mask.sum(1), config.task.max_new_tokens)
        return answers, config.reward(config.task, answers, learned).total + shaped
