"""The nouns that travel along the data path, with the shapes of their tensors.

P prompts, G completions a prompt, S = P * G sequences in group order (the G completions of prompt 0
first), L prompt tokens (left-padded), T completion tokens (right-padded), V vocabulary.
`docs/conventions.md` says which log-probs are which and where gradients flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass
class Example:
    """One problem of a task. `columns` are handed by name to user reward functions."""

    prompt: str
    answer: str
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass
class Prompts:
    """A batch of P encoded prompts, left-padded to the longest.

    ids        [P, L] int64
    attention  [P, L] bool, false on padding
    """

    examples: list[Example]
    texts: list[str]
    ids: Tensor
    attention: Tensor


@dataclass
class Sequences:
    """What a forward pass reads: prompt and completion side by side.

    ids        [S, L + T] int64; every completion starts in column L
    attention  [S, L + T] bool, false on padding
    mask       [S, T] bool, true on completion tokens up to and including EOS
    group_size every so many neighbouring rows have the same prompt, which passes read once
    """

    ids: Tensor
    attention: Tensor
    mask: Tensor
    group_size: int = 1

    def __len__(self) -> int:
        return self.ids.shape[0]

    def __getitem__(self, rows: slice) -> Sequences:
        """A view of neighbouring rows; where they cut through groups, fewer of them share a prompt."""
        start, stop, _ = rows.indices(len(self))
        shared = math.gcd(self.group_size, start, stop)
        return Sequences(self.ids[rows], self.attention[rows], self.mask[rows], shared)

    def groups(self, order: Tensor) -> Sequences:
        """The groups of these numbers, in this order."""
        rows = group_rows(order, self.group_size)
        return Sequences(self.ids[rows], self.attention[rows], self.mask[rows], self.group_size)

    @property
    def prompt_width(self) -> int:
        """L, the column in which completions start."""
        return self.ids.shape[1] - self.mask.shape[1]

    @property
    def completion_ids(self) -> Tensor:
        """[S, T] int64."""
        return self.ids[:, self.prompt_width :]

    @property
    def positions(self) -> Tensor:
        """[S, L + T] int64: positions count real tokens, so left padding changes nothing."""
        return (self.attention.long().cumsum(1) - 1).clamp(min=0)


@dataclass
class Rollout:
    """What the policy pi_old wrote.

    decode            token ids → their text
    sampler_logprobs  [S, T] log-prob of each token at the sampling temperature, by the sampler's forward passes
    entropy           [S, T] entropy in nats of the distribution that each token was drawn from, before truncation
    ended             [S] bool, true where the completion reached EOS
    """

    examples: list[Example]
    prompts: list[str]
    completions: list[str]
    group_size: int
    sequences: Sequences
    decode: Callable[[list[int]], str]
    sampler_logprobs: Tensor
    entropy: Tensor
    ended: Tensor

    def by_completion(self, of_prompts: list[T]) -> list[T]:
        """Repeats what there is for every prompt [P] for each of its completions [S]."""
        return [item for item in of_prompts for _ in range(self.group_size)]

    def groups(self, order: Tensor) -> Rollout:
        """The groups of these numbers, in this order."""
        rows = group_rows(order, self.group_size)
        return Rollout(
            examples=[self.examples[group] for group in order.tolist()],
            prompts=[self.prompts[group] for group in order.tolist()],
            completions=[self.completions[row] for row in rows.tolist()],
            group_size=self.group_size,
            sequences=self.sequences.groups(order),
            decode=self.decode,
            sampler_logprobs=self.sampler_logprobs[rows],
            entropy=self.entropy[rows],
            ended=self.ended[rows],
        )


@dataclass
class Steps:
    """Scores of steps: N of them, on the tokens at which steps end; several may end at one token.

    row    [N] int64, the completion
    token  [N] int64, its token
    score  [N]
    """

    row: Tensor
    token: Tensor
    score: Tensor

    def to(self, device: torch.device) -> Steps:
        """The same steps on a device."""
        return Steps(self.row.to(device), self.token.to(device), self.score.to(device))

    def on_tokens(self, values: Tensor, mask: Tensor) -> Tensor:
        """[S, T]: the sum of the values [N] of the steps that end at each token."""
        zeros = torch.zeros(mask.shape, dtype=values.dtype, device=mask.device)
        return zeros.index_put((self.row, self.token), values, accumulate=True)

    def rows(self, rows: Tensor, count: int) -> Steps:
        """The steps of these completions of `count`, which are numbered anew."""
        number = torch.full((count,), -1, device=rows.device)
        number[rows] = torch.arange(len(rows), device=rows.device)
        chosen = number[self.row] >= 0
        return Steps(number[self.row][chosen], self.token[chosen], self.score[chosen])


@dataclass
class Scores:
    """What the reward says of each completion.

    outcome   [S] the weighted sum of what is said of whole completions
    exact     [S] bool, whether the task's verifier gives full marks: measured, whatever the reward is
    true      [S] the task's own grade: measured, whatever the reward is
    terms     each function's unweighted scores [S], by name; step scores summed
    steps     weighted scores of steps; none without step functions
    """

    outcome: Tensor
    exact: Tensor
    true: Tensor
    terms: dict[str, Tensor]
    steps: Steps | None = None

    @property
    def total(self) -> Tensor:
        """[S] all that a completion gets."""
        if self.steps is None:
            return self.outcome
        return self.outcome.index_add(0, self.steps.row, self.steps.score)

    def to(self, device: torch.device) -> Scores:
        """The same scores on a device, all of their tensors."""
        return Scores(
            outcome=self.outcome.to(device),
            exact=self.exact.to(device),
            true=self.true.to(device),
            terms={name: term.to(device) for name, term in self.terms.items()},
            steps=None if self.steps is None else self.steps.to(device),
        )

    def rows(self, rows: Tensor) -> Scores:
        """The scores of these completions."""
        return Scores(
            outcome=self.outcome[rows],
            exact=self.exact[rows],
            true=self.true[rows],
            terms={name: term[rows] for name, term in self.terms.items()},
            steps=None if self.steps is None else self.steps.rows(rows, len(self.outcome)),
        )


@dataclass
class Rewards:
    """Rewards on their tokens, as baselines, advantages and scales read them.

    tokens  [S, T] reward of each token: its scores, plus the KL reward if there is one
    steps   what the scores on tokens are made of: of an outcome, one step at each completion's end
    last    [S, T] bool, the last token of each completion
    mask    [S, T] bool
    greedy  [P] the score of each prompt's greedy completion, none where no baseline asks for it
    """

    tokens: Tensor
    steps: Steps
    last: Tensor
    mask: Tensor
    group_size: int
    greedy: Tensor | None = None

    @property
    def totals(self) -> Tensor:
        """[S] the sum over each sequence: its return at γ = 1."""
        return torch.where(self.mask, self.tokens, 0).sum(1)

    @property
    def grouped(self) -> Tensor:
        """[P, G] the returns by group."""
        return self.totals.view(-1, self.group_size)

    def step_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (ddof 1) of all step scores of each group, [P] each.

        The deviation is exactly zero where they are all equal, and where there are fewer than two.
        """
        group, score = self.steps.row // self.group_size, self.steps.score
        zeros = torch.zeros(len(self.mask) // self.group_size, dtype=score.dtype, device=score.device)
        count = zeros.index_add(0, group, torch.ones_like(score))
        mean = zeros.index_add(0, group, score) / count.clamp(min=1)
        squares = zeros.index_add(0, group, (score - mean[group]).square())
        spread = zeros.scatter_reduce(0, group, score, "amax", include_self=False) > zeros.scatter_reduce(
            0, group, score, "amin", include_self=False
        )
        return mean, torch.where(spread, (squares / (count - 1).clamp(min=1)).sqrt(), 0)


@dataclass
class Experience:
    """Everything the update needs; all [S, T], none carries gradient.

    behaviour_logprobs   log pi_old at the sampling temperature
    reference_logprobs   log pi_ref, none where nothing asks for a reference
    values, returns      the critic's estimate and its target, none without a critic
    """

    sequences: Sequences
    behaviour_logprobs: Tensor
    advantages: Tensor
    reference_logprobs: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, rows: slice) -> Experience:
        return self._take(self.sequences[rows], rows)

    def groups(self, order: Tensor) -> Experience:
        """The groups of these numbers, in this order: a minibatch."""
        return self._take(self.sequences.groups(order), group_rows(order, self.sequences.group_size))

    def _take(self, sequences: Sequences, rows: slice | Tensor) -> Experience:
        def take(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[rows]

        return Experience(
            sequences=sequences,
            behaviour_logprobs=self.behaviour_logprobs[rows],
            advantages=self.advantages[rows],
            reference_logprobs=take(self.reference_logprobs),
            values=take(self.values),
            returns=take(self.returns),
        )


def group_rows(groups: Tensor, group_size: int) -> Tensor:
    """The numbers of the rows of these groups."""
    return (groups[:, None] * group_size + torch.arange(group_size, device=groups.device)).flatten()


def micro_batches(count: int, size: int) -> Iterator[slice]:
    """Yields the rows 0 … count − 1 in order, at most `size` at a time; all at once where size is 0."""
    size = size or count
    yield from (slice(start, min(start + size, count)) for start in range(0, count, size))


def numbers(scalars: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Scalars as Python numbers, by name and in the same order, with one wait for each device instead of one each."""
    found = dict(scalars)
    for device in {scalar.device for scalar in scalars.values() if isinstance(scalar, Tensor)}:
        there = {k: v for k, v in scalars.items() if isinstance(v, Tensor) and v.device == device}
        found |= zip(there, torch.stack([scalar.double() for scalar in there.values()]).tolist(), strict=True)
    return {name: float(scalar) for name, scalar in found.items()}


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over the mask, a scalar; zero where the mask is empty."""
    return torch.where(mask, x, 0).sum() / mask.sum().clamp(min=1)


def masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    """Variance (ddof 0) of x over the mask, a scalar."""
    return masked_mean((x - masked_mean(x, mask)).square(), mask)
