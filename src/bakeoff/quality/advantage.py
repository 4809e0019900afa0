"""A method's advantages against Monte-Carlo truth at the same states: correlation, bias, rank, by position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bakeoff.algorithm.scale import Scale
from bakeoff.batch import Prompts, Rollout, Scores
from bakeoff.config import Quality
from bakeoff.engine.engine import Generated, Request, make_rollout
from bakeoff.loop import Loop, collect, experience_of, learned_scores
from bakeoff.quality import train_critic, with_stream
from bakeoff.randomness import derive
from bakeoff.rows import select

APART = 0.1  # of the score: true advantages that are nearer to each other have no order to get right


@dataclass
class AdvantageQuality:
    """Advantages of tokens, before they are scaled, compared with the truth.

    The fields are the metrics `advantage/…`, which metrics.py defines.
    """

    correlation: float
    correlation_ceiling: float
    bias: float
    rank_accuracy: float


def advantage_quality(
    loop: Loop, sizes: Quality, report: Callable[[str], None]
) -> tuple[AdvantageQuality, dict[int, AdvantageQuality]]:
    """Quality of the method's advantages at the policy of the loop: overall, and by position from 0.

    The true advantage of a token is V(s′) − V(s), each V the mean score of many continuations by the policy. It is
    estimated twice, and the correlation of the two estimates bounds the correlation that can be found.
    """
    learner = loop.learner
    report("training the critic" if learner.algorithm.critic.exists else "no critic to train")
    train_critic(loop, sizes.critic_updates)
    unscaled = replace(learner, algorithm=replace(learner.algorithm, scale=Scale()))
    source = with_stream(replace(loop, learner=unscaled), "advantage")
    collected = collect(source, 0)
    rollout = collected.rollout
    experience, _ = experience_of(source, collected)
    source.collector.engine.load(learner.actor)  # which rests while the experience is made
    truths = []
    for half in ("one", "other"):
        report(f"continuations from {int(rollout.sequences.mask.sum())} states")
        truths.append(true_advantages(source, rollout, collected.scores, sizes.continuations, f"truth/{half}"))
    mask, size = rollout.sequences.mask, rollout.group_size
    overall = compared(experience.advantages, truths, mask, size)
    positions = {}
    for position in range(mask.shape[1]):
        here = torch.zeros_like(mask)
        here[:, position] = mask[:, position]
        if int(here.sum()) > 2:
            positions[position] = compared(experience.advantages, truths, here, size)
    return overall, positions


def true_advantages(loop: Loop, rollout: Rollout, scores: Scores, continuations: int, stream: str) -> Tensor:
    """A(s, a) [S, T] of every token, from that number of completions by the policy at every state.

    A token leads to one state, so its Q is the value of that state, and the last one's is the score.
    """
    mask = rollout.sequences.mask
    values = scores.total[:, None].repeat(1, mask.shape[1] + 1)  # V before each token, and after the last
    for position in range(mask.shape[1]):
        rows = mask[:, position].nonzero().squeeze(1)
        if len(rows):
            values[rows, position] = mean_continuation(loop, rollout, rows, position, continuations, stream)
    return (values[:, 1:] - values[:, :-1]) * mask


def mean_continuation(
    loop: Loop, rollout: Rollout, rows: Tensor, position: int, continuations: int, stream: str
) -> Tensor:
    """Mean score of continuations of these completions, each from its first `position` tokens."""
    collector, sequences = loop.collector, rollout.sequences
    examples, texts = select(rollout.examples, rows), select(rollout.prompts, rows)
    width, read = sequences.prompt_width, sequences.prompt_width + position

    def request(columns: int, budget: int) -> Request:
        prompts = Prompts(examples, texts, sequences.ids[rows, :columns], sequences.attention[rows, :columns])
        seed = derive(collector.seed, stream, position)
        return Request(prompts, continuations, collector.sampling, budget, seed, stop=collector.task.stops())

    rest = collector.engine.generate(request(read, rollout.max_tokens - position))
    begun = sequences.ids[rows, width:read].repeat_interleave(continuations, 0)
    ids = torch.cat([begun, rest.ids], 1)
    whole = Generated(ids, torch.zeros(ids.shape, device=ids.device))  # no score reads log-probs
    completed = make_rollout(loop.learner.actor, request(width, rollout.max_tokens), whole)
    return collector.score(completed, learned_scores(loop, completed)).total.view(-1, continuations).mean(1)


def compared(estimates: Tensor, truths: list[Tensor], mask: Tensor, group_size: int) -> AdvantageQuality:
    """Estimates [S, T] against two independent estimates of the truth, over a mask."""
    truth = (truths[0] + truths[1]) / 2
    twice = correlation(truths[0][mask], truths[1][mask])
    return AdvantageQuality(
        correlation=correlation(estimates[mask], truth[mask]),
        correlation_ceiling=max(2 * twice / (1 + twice), 0.0) ** 0.5 if twice > -1 else 0.0,
        bias=float((estimates - truth)[mask].mean()),
        rank_accuracy=rank_accuracy(estimates, truth, mask, group_size),
    )


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation; zero where one of them does not vary."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms else 0.0


def rank_accuracy(estimates: Tensor, truth: Tensor, mask: Tensor, group_size: int) -> float:
    """Share of pairs of tokens that the estimates order as the truth does; ½ is chance, NaN where there is no pair.

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
