"""Accuracy on held-out prompts, and completions as rows for a person to read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, takewhile
from typing import Any

import torch
from torch import Tensor

from bakeoff import processes
from bakeoff.batch import Example, Rollout
from bakeoff.collector import Collector
from bakeoff.loop import Loop
from bakeoff.model.policy import Policy
from bakeoff.reward.measure import Scored, UserMetrics, joined, scored
from bakeoff.task.task import CONVERSATION

READ = 8  # held-out prompts whose greedy completions every evaluation keeps, so that one prompt can be read over time


@dataclass
class HeldOut:
    """Accuracy on held-out prompts: the metrics `eval/…`, which metrics.py defines.

    pass_at        by k: the probability that one of k sampled completions of a prompt is right
    failed         share of all completions, greedy and sampled, that could not be scored
    right_length   mean length in tokens of the sampled completions that are right, none where none is
    wrong_length   mean length in tokens of those that are wrong, none where none is
    by_difficulty  sampled accuracy on the prompts of each difficulty, empty where all are of one
    hint           what to type where no greedy completion is right and another verifier would accept some
    user           values of the user's metrics on the sampled completions, by name
    read           the greedy completions of the first READ prompts, as rows of a table for a person to read
    """

    greedy_accuracy: float
    sampled_accuracy: float
    pass_at: dict[int, float]
    failed: float
    greedy_length: float
    right_length: float | None
    wrong_length: float | None
    hint: Callable[[], str] = lambda: ""
    read: list[dict[str, Any]] = field(default_factory=list)
    user: dict[str, float] = field(default_factory=dict)
    by_difficulty: dict[str, float] = field(default_factory=dict)


def evaluate(loop: Loop, samples: int, whole: bool = False) -> HeldOut:
    """Evaluates on the held-out prompts: greedily, and by `samples` completions of each at the training temperature.

    The first and the last evaluation of a run read the `whole` set, which the configuration may make larger: so the two
    differ by the policy alone.
    """
    actor, collector, number = loop.learner.actor, loop.collector, loop.learner.counters.updates
    examples = collector.task.final_examples() if whole else loop.heldout.examples
    with loop.phase("evaluation"):
        own = loop.user_metrics if processes.leads() else None
        return held_out_of(actor, collector, examples, samples, number, own)


def held_out_of(
    actor: Policy,
    collector: Collector,
    examples: list[Example],
    samples: int,
    number: int = 0,
    user_metrics: UserMetrics | None = None,
) -> HeldOut:
    """The accuracy of a policy on these examples; `number` is that of the update, which decides the draws."""
    collector.engine.load(actor)
    greedy = judged(collector, collector.answers(actor, examples, 1, "evaluation", number, greedy=True))
    kept: list[Scored] | None = [] if user_metrics else None
    sampled = judged(collector, collector.answers(actor, examples, samples, "evaluation", number), kept)
    return HeldOut(
        greedy_accuracy=float(greedy.right.mean()),
        sampled_accuracy=float(sampled.right.mean()),
        pass_at=pass_at(sampled.right.view(-1, samples)),
        failed=float(torch.cat([greedy.failed, sampled.failed]).mean()),
        greedy_length=float(greedy.lengths.mean()),
        right_length=mean_where(sampled.right == 1, sampled.lengths),
        wrong_length=mean_where(sampled.right == 0, sampled.lengths),
        hint=lambda: "" if greedy.right.any() else collector.task.hint(greedy.texts, examples),
        read=greedy.read,
        user=user_metrics(joined(kept), strict=not number) if user_metrics and kept else {},
        by_difficulty=by_difficulty([collector.task.difficulty(each) for each in examples], sampled.right, samples),
    )


def by_difficulty(levels: list[str], right: Tensor, samples: int) -> dict[str, float]:
    """The mean of `right` over the completions of each level's prompts, empty where all are of one level."""
    of_prompt, different = right.view(-1, samples).mean(1), sorted(set(levels))
    chosen = {level: torch.tensor([each == level for each in levels]) for level in different}
    return {level: float(of_prompt[rows].mean()) for level, rows in chosen.items()} if len(different) > 1 else {}


@dataclass
class Judged:
    """Completions as the verifier judges them, float [S]: right and failed are 0 or 1, lengths are tokens.

    `texts` are theirs; `read` has the first READ of them as rows.
    """

    right: Tensor
    failed: Tensor
    lengths: Tensor
    texts: list[str]
    read: list[dict[str, Any]]


def judged(collector: Collector, parts: Iterator[Rollout], kept: list[Scored] | None = None) -> Judged:
    """The judgement of every completion; right are those with full marks.

    `kept` receives what a user's metric reads of each part, with the verifier's scores as rewards.
    """
    rows, texts, read = [], list[str](), list[dict[str, Any]]()
    for part in parts:
        verdicts, tokens = collector.judge(part), part.sequences.mask.sum(1).tolist()
        if kept is not None:
            kept.append(scored(part, [v.score for v in verdicts], [v.score >= 1 for v in verdicts]))
        rows += [(v.score >= 1, v.failed, length) for v, length in zip(verdicts, tokens, strict=True)]
        texts += part.completions
        read += [completion_row(part, row, verdicts[row].score) for row in range(len(verdicts))[: READ - len(read)]]
    right, failed, lengths = torch.tensor(rows, dtype=torch.float32).T
    return Judged(right, failed, lengths, texts, read)


def completion_row(rollout: Rollout, row: int, score: float) -> dict[str, Any]:
    """A completion with its score as a row of a table for a person to read."""
    return {
        "prompt": rollout.prompts[row],
        "completion": transcript(rollout, row),
        "answer": rollout.examples[row].answer,
        "reward": score,
        "ended": bool(rollout.ended[row]),
    }


def transcript(rollout: Rollout, row: int) -> str:
    """The completion as a person reads it: of several turns, with the environment's replies between them."""
    sequences = rollout.sequences
    if not (sequences.completion_attention & ~sequences.mask)[row].any():
        return rollout.completions[row]
    _, *said = rollout.examples[row].columns[CONVERSATION]
    return "\n".join(f"{each['role']}: {each['content']}" for each in said)


def pass_at(right: Tensor) -> dict[int, float]:
    """pass@k of prompts with n completions each, [P, n] of 0 and 1, for k = 2, 4, 8 … up to n.

    Chen et al. 2021 eq. 1, without bias: 1 − C(n − c, k)/C(n, k) for a prompt with c right completions, mean over
    prompts.
    """
    n = right.shape[1]
    wrong = [n - int(c) for c in right.sum(1).tolist()]
    ks = takewhile(lambda k: k <= n, (2**power for power in count(1)))
    return {k: 1 - sum(math.comb(each, k) for each in wrong) / (math.comb(n, k) * len(wrong)) for k in ks}


def mean_where(chosen: Tensor, values: Tensor) -> float | None:
    """Mean of the chosen values, none where none is chosen."""
    return float(values[chosen].mean()) if chosen.any() else None
