"""A method's advantages against Monte-Carlo truth at the same states: correlation, bias, rank, by position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bakeoff.algorithm.scale import Scale
from bakeoff.batch import Prompts, Rollout, Scores
from bakeoff.config import Config
from bakeoff.learner.collect import collect
from bakeoff.learner.experience import make_experience
from bakeoff.learner.state import Counters, Learner, Passes
from bakeoff.model.load import Policy
from bakeoff.quality import elsewhere, train_critic
from bakeoff.randomness import generator
from bakeoff.rollout import assembled

APART = 0.1  # of the score: true advantages that are nearer to each other have no order to get right


def advantage_quality(
    config: Config, learner: Learner, passes: Passes, say: Callable[[str], None]
) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
    """How a method's advantages, before they are scaled, compare with the truth: in all, and by position from 0.

    The truth at a token is V(s′) − V(s), each V the mean score of many continuations by the policy; it is estimated
    twice, and the correlation of the two says how good it is itself.
    """
    say("training the critic" if learner.algorithm.critic.exists else "no critic to train")
    train_critic(config, learner, passes)
    unscaled = replace(learner.algorithm, scale=Scale())
    subject = replace(learner, algorithm=unscaled, counters=Counters())
    data = elsewhere(replace(config, algorithm=unscaled), "advantage")
    collected = collect(data, subject, passes)
    rollout = collected.rollout
    experience, _ = make_experience(subject, rollout, collected.scores, collected.greedy, passes)
    truths = []
    for half in ("one", "other"):
        say(f"continuations from {int(rollout.sequences.mask.sum())} states")
        truths.append(true_advantages(data, learner.actor, rollout, collected.scores, f"truth/{half}"))
    mask, size = rollout.sequences.mask, rollout.group_size
    overall = compared(experience.advantages, truths, mask, size)
    positions = {}
    for position in range(mask.shape[1]):
        here = torch.zeros_like(mask)
        here[:, position] = mask[:, position]
        if int(here.sum()) > 2:
            found = compared(experience.advantages, truths, here, size)
            positions[position] = {f"{name}_by_position": value for name, value in found.items()}
    return overall, positions


def true_advantages(config: Config, policy: Policy, rollout: Rollout, scores: Scores, stream: str) -> Tensor:
    """A(s, a) [S, T] of every token, from `quality.continuations` completions by the policy at every state.

    A token leads to one state, so its Q is the value of that state, and the last one's is the score.
    """
    mask = rollout.sequences.mask
    values = scores.total[:, None].repeat(1, mask.shape[1] + 1)  # V before each token, and after the last
    for position in range(mask.shape[1]):
        rows = mask[:, position].nonzero().squeeze(1)
        if len(rows):
            values[rows, position] = continued(config, policy, rollout, rows, position, stream)
    return (values[:, 1:] - values[:, :-1]) * mask


def continued(config: Config, policy: Policy, rollout: Rollout, rows: Tensor, position: int, stream: str) -> Tensor:
    """The mean score of continuations of these completions, each from its first `position` tokens."""
    sequences, many, task = rollout.sequences, config.quality.continuations, config.task
    examples, texts = rollout.by_completion(rollout.examples), rollout.by_completion(rollout.prompts)
    chosen = rows.tolist()
    width = sequences.prompt_width

    def prompts(read: int) -> Prompts:
        ids, attention = sequences.ids[rows, :read], sequences.attention[rows, :read]
        return Prompts([examples[row] for row in chosen], [texts[row] for row in chosen], ids, attention)

    draws = generator(policy.device, config.seed, stream, position)
    rest = config.rollout(policy, prompts(width + position), many, task.max_new_tokens - position, draws)
    begun = sequences.ids[rows, width : width + position].repeat_interleave(many, 0)
    ids = torch.cat([begun, rest.sequences.completion_ids], 1)
    nothing = torch.zeros(ids.shape, device=ids.device)  # log-probs and entropies, which no score asks for
    whole = assembled(policy, prompts(width), many, ids, nothing, nothing)
    return config.reward(task, whole).total.view(-1, many).mean(1)


def compared(estimates: Tensor, truths: list[Tensor], mask: Tensor, group_size: int) -> dict[str, float]:
    """Estimates [S, T] against two independent estimates of the truth, over a mask, under metric names."""
    truth = (truths[0] + truths[1]) / 2
    twice = correlation(truths[0][mask], truths[1][mask])
    return {
        "advantage/correlation": correlation(estimates[mask], truth[mask]),
        "advantage/correlation_ceiling": max(2 * twice / (1 + twice), 0.0) ** 0.5 if twice > -1 else 0.0,
        "advantage/bias": float((estimates - truth)[mask].mean()),
        "advantage/rank_accuracy": rank_accuracy(estimates, truth, mask, group_size),
    }


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation; zero where one of them does not vary."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms else 0.0


def rank_accuracy(estimates: Tensor, truth: Tensor, mask: Tensor, group_size: int) -> float:
    """The share of pairs of tokens that the estimates order as the truth does; ½ is chance, NaN where there is no pair.

    Pairs are at the same position of two completions of one prompt, their true advantages at least `APART` apart.
    Equal estimates count one half.
    """

    def pairs(x: Tensor) -> Tensor:
        grouped = x.view(-1, group_size, x.shape[1])
        return grouped[:, :, None] - grouped[:, None]

    both = mask.view(-1, group_size, mask.shape[1])
    known = both[:, :, None] & both[:, None] & (pairs(truth) >= APART)
    right = (pairs(estimates) > 0).double() + 0.5 * (pairs(estimates) == 0).double()
    return float(right[known].mean()) if bool(known.any()) else float("nan")
