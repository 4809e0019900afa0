"""The nouns that travel along the data path, with the shapes of their tensors.

P prompts, G completions a prompt, S = P * G sequences in group order (the G completions of prompt 0
first), L prompt tokens (left-padded), T completion tokens (right-padded), V vocabulary.
`docs/conventions.md` says which log-probs are which and where gradients flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate, compress
from typing import Any

import torch
from torch import Tensor

from bakeoff.rows import concatenate, fieldwise, pad_columns, select


@dataclass
class Example:
    """One problem of a task; no answer where the task only has a verifier. User rewards receive `columns` by name.

    solution   worked answer to imitate and to show, where it is another than the answer
    messages   the chat that a policy reads, where it is more than the prompt as a user's message
    """

    prompt: str
    answer: str | None
    columns: dict[str, Any] = field(default_factory=dict)
    solution: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)


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
    """Prompt and completion side by side, as a forward pass reads them.

    A completion of several turns has the replies of an environment between them. The policy wrote its last token.

    ids          [S, L + T] int64; every completion starts in column L
    attention    [S, L + T] bool, true on all tokens, whoever wrote them; false on padding
    mask         [S, T] bool, true on the tokens that the policy wrote, EOS included: no loss, mean or number of
                 tokens includes any other
    group_size   number of consecutive rows that share a prompt; forward passes encode it once
    """

    ids: Tensor
    attention: Tensor
    mask: Tensor
    group_size: int = 1

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def prompt_width(self) -> int:
        """L, the column in which completions start."""
        return self.ids.shape[1] - self.mask.shape[1]

    @property
    def completion_ids(self) -> Tensor:
        """[S, T] int64."""
        return self.ids[:, self.prompt_width :]

    @property
    def completion_attention(self) -> Tensor:
        """[S, T] bool, true on the tokens of policy and environment: the mask, where there is one turn."""
        return self.attention[:, self.prompt_width :]

    def written(self) -> Iterator[tuple[list[int], list[int]]]:
        """Yields the ids of each row's tokens that the policy wrote, and their columns in [0, T)."""
        for ids, mask in zip(self.completion_ids.tolist(), self.mask.tolist(), strict=True):
            yield list(compress(ids, mask)), list(compress(range(len(mask)), mask))

    @property
    def positions(self) -> Tensor:
        """[S, L + T] int64: positions count real tokens, so left padding changes nothing."""
        return (self.attention.long().cumsum(1) - 1).clamp(min=0)

    def select(self, rows: slice | Tensor) -> Sequences:
        """See `rows.select`. A slice that cuts through a group leaves fewer rows that share a prompt."""
        cuts = rows.indices(len(self))[:2] if isinstance(rows, slice) else ()
        chosen: Sequences = fieldwise(select, self, rows)
        return replace(chosen, group_size=math.gcd(self.group_size, *cuts))

    @staticmethod
    def concatenate(parts: list[Sequences]) -> Sequences:
        """See `rows.concatenate`. Prompts are padded on the left, so that all completions start in one column."""
        width = max(part.prompt_width for part in parts)
        missing = [width - part.prompt_width for part in parts]
        ids = concatenate([pad_columns(part.ids, left) for part, left in zip(parts, missing, strict=True)])
        attention = concatenate([pad_columns(part.attention, left) for part, left in zip(parts, missing, strict=True)])
        return Sequences(ids, attention, concatenate([part.mask for part in parts]), parts[0].group_size)


@dataclass
class Rollout:
    """Completions of the policy π_old. Every field has one entry per sequence, but the last three, which all share.

    examples           the problem that each sequence answers; the G sequences of a group repeat it
    prompts            text of the prompt
    completions        text that the policy wrote; several turns are on lines of their own
    sampler_logprobs   [S, T] log-prob of each token at the sampling temperature, as the engine computed it
    entropy            [S, T] entropy in nats of the distribution behind each token, before truncation; none where the
                       engine does not compute it
    ended              [S] bool, true where the completion reached EOS, or its last turn did
    max_tokens         generation budget of a completion in all of its turns, EOS included
    decode             token ids of a turn → their text, without a stop string and what follows
    version            `weights_version` of the engine's copy of π_old; none where it has no copy
    """

    examples: list[Example]
    prompts: list[str]
    completions: list[str]
    sequences: Sequences
    sampler_logprobs: Tensor
    entropy: Tensor | None
    ended: Tensor
    max_tokens: int
    decode: Callable[[list[int]], str]
    version: str | None = None

    @property
    def group_size(self) -> int:
        """Number of completions of each prompt."""
        return self.sequences.group_size


@dataclass
class StepRewards:
    """Scores of N reasoning steps, each on the token that ends its step; several steps may end on one token.

    row           [N] int64, the completion
    token         [N] int64, the token of that completion
    score         [N]
    completions   number of completions, those without steps included
    """

    row: Tensor
    token: Tensor
    score: Tensor
    completions: int

    def on_tokens(self, values: Tensor, mask: Tensor) -> Tensor:
        """[S, T]: at each token the sum of the values [N] of the steps that end there."""
        zeros = torch.zeros(mask.shape, dtype=values.dtype, device=mask.device)
        return zeros.index_put((self.row, self.token), values, accumulate=True)

    def select(self, rows: slice | Tensor) -> StepRewards:
        """See `rows.select`. The selected completions are numbered anew."""
        every = torch.arange(self.completions, device=self.row.device)
        number, count = torch.full_like(every, -1), len(every[rows])
        number[rows] = every[:count]
        chosen = number[self.row] >= 0
        return StepRewards(number[self.row][chosen], self.token[chosen], self.score[chosen], count)

    @staticmethod
    def concatenate(parts: list[StepRewards]) -> StepRewards:
        """See `rows.concatenate`. Completions of a later part are numbered after those of the earlier ones."""
        first = list(accumulate((part.completions for part in parts), initial=0))
        row = torch.cat([part.row + offset for part, offset in zip(parts, first, strict=False)])
        token, score = torch.cat([part.token for part in parts]), torch.cat([part.score for part in parts])
        return StepRewards(row, token, score, first[-1])


@dataclass
class Scores:
    """Scores of each completion.

    outcome   [S] weighted sum of the completion-level rewards
    exact     [S] bool, whether the task's verifier gives full marks: measured, whatever the reward is
    true      [S] the task's own grade: measured, whatever the reward is
    failed    [S] bool, whether the verifier or a reward function gave no score, which is then 0
    terms     unweighted scores [S] of each reward function, by name; step scores are summed
    process   weighted scores of steps; none without functions that score steps
    """

    outcome: Tensor
    exact: Tensor
    true: Tensor
    failed: Tensor
    terms: dict[str, Tensor]
    process: StepRewards | None = None

    @property
    def total(self) -> Tensor:
        """[S] outcome plus all step scores."""
        if self.process is None:
            return self.outcome
        return self.outcome.index_add(0, self.process.row, self.process.score)


@dataclass
class Rewards:
    """Rewards on their tokens, as baselines, advantages and scales read them.

    tokens    [S, T] reward of each token: its scores, plus the KL reward if there is one
    process   the (row, token, score) triples behind `tokens`; an outcome reward is one step on the last token
    last      [S, T] bool, the last token of each completion, which the policy wrote
    mask      [S, T] bool
    greedy    [P] score of each prompt's greedy completion, none where no baseline asks for it
    """

    tokens: Tensor
    process: StepRewards
    last: Tensor
    mask: Tensor
    group_size: int
    greedy: Tensor | None = None

    @property
    def totals(self) -> Tensor:
        """[S] sum over each sequence: its return at γ = 1."""
        return torch.where(self.mask, self.tokens, 0).sum(1)

    @property
    def grouped(self) -> Tensor:
        """[P, G] returns by group."""
        return self.totals.view(-1, self.group_size)


@dataclass
class Tokens:
    """Tokens of a micro-batch as a ratio and an objective read them, all [S, T]; log-probs are zero on padding.

    logprobs         log π_θ; carries gradient
    behaviour        log π_old
    advantages       scaled advantage of each token
    mask             bool
    entropy          entropy of π_old in nats, none where the engine does not compute it
    chosen           bool, the tokens that the objective has chosen of the rollout, none where it chooses none
    correction       weight of the token for a sampler that is not π_old, none where the method has none
    policy_entropy   entropy of π_θ in nats; carries gradient; none where the method has no bonus for it
    """

    logprobs: Tensor
    behaviour: Tensor
    advantages: Tensor
    mask: Tensor
    entropy: Tensor | None = None
    chosen: Tensor | None = None
    correction: Tensor | None = None
    policy_entropy: Tensor | None = None


@dataclass
class Experience:
    """Everything the update needs; tensors are [S, T], none carries gradient.

    behaviour_logprobs   log π_old at the sampling temperature
    max_tokens           generation budget of a completion, by which an aggregation may divide
    entropy              entropy of π_old in nats, none where nothing has computed it
    chosen               bool, the tokens that the objective treats differently, none where it chooses none
    correction           weights for a sampler that is not π_old, none where the method has none
    reference_logprobs   log π_ref, none where nothing asks for a reference
    values, returns      the critic's estimate and its target, none without a critic
    """

    sequences: Sequences
    behaviour_logprobs: Tensor
    advantages: Tensor
    max_tokens: int
    entropy: Tensor | None = None
    chosen: Tensor | None = None
    correction: Tensor | None = None
    reference_logprobs: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None

    def __len__(self) -> int:
        return len(self.sequences)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over the mask, a scalar; zero where the mask is empty."""
    return torch.where(mask, x, 0).sum() / mask.sum().clamp(min=1)


def masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    """Variance (ddof 0) of x over the mask, a scalar."""
    return masked_mean((x - masked_mean(x, mask)).square(), mask)
