"""Accuracy on the held-out prompts: greedy, and sampled at the training temperature."""

from __future__ import annotations

import torch

from bakeoff.batch import Prompts, Rollout
from bakeoff.model.load import Policy
from bakeoff.randomness import generator
from bakeoff.rollout import Sampler
from bakeoff.task import Task


def evaluate_policy(
    policy: Policy, task: Task, sampler: Sampler, prompts: Prompts, samples: int, seed: int, step: int
) -> dict[str, float]:
    """Mean exact-match of greedy and of `samples` sampled completions a prompt, under their metric names."""
    draws = generator(policy.device, seed, "evaluation", step)
    greedy = sampler(policy, prompts, 1, task.max_new_tokens, draws, greedy=True)
    sampled = sampler(policy, prompts, samples, task.max_new_tokens, draws)
    return {
        "eval/greedy_accuracy": exact_match(task, greedy),
        "eval/sampled_accuracy": exact_match(task, sampled),
        "eval/greedy_length": float(greedy.sequences.mask.sum(1).float().mean()),
    }


def exact_match(task: Task, rollout: Rollout) -> float:
    """The share of completions that the verifier gives full marks."""
    examples = rollout.by_completion(rollout.examples)
    full = [task.verify(c, e) >= 1.0 for c, e in zip(rollout.completions, examples, strict=True)]
    return float(torch.tensor(full).float().mean())
