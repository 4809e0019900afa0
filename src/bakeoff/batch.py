"""The nouns that travel along the data path, with the shapes of their tensors.

P prompts, G completions a prompt, S = P * G sequences in group order (the G completions of prompt 0
first), L prompt tokens (left-padded), T completion tokens (right-padded), V vocabulary.
`docs/conventions.md` says which log-probs are which and where gradients flow.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import accumulate, chain
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Scalar = Tensor | float  # a scalar of a statistic: a tensor on its device until `numbers` has fetched it


@dataclass
class Example:
    """One problem of a task. User reward functions receive `columns` by name."""

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
    """Prompt and completion side by side, as a forward pass reads them.

    ids          [S, L + T] int64; every completion starts in column L
    attention    [S, L + T] bool, false on padding
    mask         [S, T] bool, true on completion tokens up to and including EOS
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
    def positions(self) -> Tensor:
        """[S, L + T] int64: positions count real tokens, so left padding changes nothing."""
        return (self.attention.long().cumsum(1) - 1).clamp(min=0)

    def select(self, rows: slice | Tensor) -> Sequences:
        """See `select`. A slice that cuts through a group leaves fewer rows that share a prompt."""
        shared = self.group_size
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            shared = math.gcd(shared, start, stop)
        return replace(fieldwise(select, self, rows), group_size=shared)

    @staticmethod
    def concatenate(parts: list[Sequences]) -> Sequences:
        """See `concatenate`. Prompts are padded on the left, so that all completions start in one column."""
        width = max(part.prompt_width for part in parts)

        def left(part: Sequences, x: Tensor) -> Tensor:
            return pad_columns(x, left=width - part.prompt_width)

        return Sequences(
            ids=concatenate([left(part, part.ids) for part in parts]),
            attention=concatenate([left(part, part.attention) for part in parts]),
            mask=concatenate([part.mask for part in parts]),
            group_size=parts[0].group_size,
        )


@dataclass
class Rollout:
    """Completions of the policy π_old. Every field has one entry per sequence, but the last two, which all share.

    examples           the problem that each sequence answers; the G sequences of a group repeat it
    prompts            text of the prompt
    completions        text of the completion
    sampler_logprobs   [S, T] log-prob of each token at the sampling temperature, as the engine computed it
    entropy            [S, T] entropy in nats of the distribution behind each token, before truncation; none where the
                       engine does not compute it
    ended              [S] bool, true where the completion reached EOS
    max_tokens         generation budget of a completion, EOS included
    decode             token ids → their text
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
        """See `select`. The selected completions are numbered anew."""
        every = torch.arange(self.completions, device=self.row.device)
        number = torch.full_like(every, -1)
        number[rows] = every[: len(every[rows])]
        chosen = number[self.row] >= 0
        return StepRewards(number[self.row][chosen], self.token[chosen], self.score[chosen], len(every[rows]))

    @staticmethod
    def concatenate(parts: list[StepRewards]) -> StepRewards:
        """See `concatenate`. Completions of a later part are numbered after those of the earlier ones."""
        first = accumulate((part.completions for part in parts), initial=0)
        return StepRewards(
            row=torch.cat([part.row + offset for part, offset in zip(parts, first, strict=False)]),
            token=torch.cat([part.token for part in parts]),
            score=torch.cat([part.score for part in parts]),
            completions=sum(part.completions for part in parts),
        )


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
    last      [S, T] bool, the last token of each completion
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

    logprobs     log π_θ; carries gradient
    behaviour    log π_old
    advantages   scaled advantage of each token
    mask         bool
    entropy      entropy of π_old in nats, none where the engine does not compute it
    """

    logprobs: Tensor
    behaviour: Tensor
    advantages: Tensor
    mask: Tensor
    entropy: Tensor | None = None


@dataclass
class Experience:
    """Everything the update needs; tensors are [S, T], none carries gradient.

    behaviour_logprobs   log π_old at the sampling temperature
    max_tokens           generation budget of a completion, by which an aggregation may divide
    entropy              entropy of π_old in nats, none where the engine does not compute it
    reference_logprobs   log π_ref, none where nothing asks for a reference
    values, returns      the critic's estimate and its target, none without a critic
    """

    sequences: Sequences
    behaviour_logprobs: Tensor
    advantages: Tensor
    max_tokens: int
    entropy: Tensor | None = None
    reference_logprobs: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None

    def __len__(self) -> int:
        return len(self.sequences)


def fieldwise(function: Callable[..., Any], noun: T, *arguments: Any) -> T:
    """A dataclass of the same class, each of whose fields is the function's result for the field of `noun`."""
    changed = {each.name: function(getattr(noun, each.name), *arguments) for each in fields(noun)}  # type: ignore[arg-type]
    return replace(noun, **changed)  # type: ignore[type-var]


def select(noun: T, rows: slice | Tensor) -> T:
    """The given rows of a noun: of every tensor, list and nested noun in it. What all rows share stays as it is.

    `rows` is a slice, which gives views of tensors, or an int64 tensor of whole groups.
    """
    match noun:
        case Sequences() | StepRewards():
            return noun.select(rows)  # type: ignore[return-value]
        case Tensor():
            return noun[rows]  # type: ignore[return-value]
        case list():
            numbers = range(len(noun))[rows] if isinstance(rows, slice) else rows.tolist()
            return [noun[number] for number in numbers]  # type: ignore[return-value]
        case dict():
            return {key: select(value, rows) for key, value in noun.items()}  # type: ignore[return-value]
    return fieldwise(select, noun, rows) if is_dataclass(noun) else noun


def concatenate(nouns: list[T]) -> T:
    """Nouns of one kind as one, row after row; narrower tensors are padded with zeros on the right.

    What all rows share is the first noun's.
    """
    first = nouns[0]
    if len(nouns) == 1:
        return first
    match first:
        case Sequences() | StepRewards():
            return first.concatenate(nouns)  # type: ignore[arg-type, return-value]
        case Tensor() if first.dim() > 1:
            width = max(x.shape[1] for x in nouns)  # type: ignore[attr-defined]
            padded = [pad_columns(x, right=width - x.shape[1]) for x in nouns]  # type: ignore[arg-type, attr-defined]
            return torch.cat(padded)  # type: ignore[return-value]
        case Tensor():
            return torch.cat(nouns)  # type: ignore[arg-type, return-value]
        case list():
            return list(chain.from_iterable(nouns))  # type: ignore[arg-type, return-value]
        case dict():
            return {key: concatenate([noun[key] for noun in nouns]) for key in first}  # type: ignore[index, return-value]
    if not is_dataclass(first):
        return first
    joined = {each.name: concatenate([getattr(noun, each.name) for noun in nouns]) for each in fields(first)}
    return replace(first, **joined)  # type: ignore[type-var]


def to_device(noun: T, device: torch.device) -> T:
    """The noun with all of its tensors on the device."""
    return map_tensors(lambda tensor: tensor.to(device), noun)


def map_tensors(function: Callable[[Tensor], Any], noun: T) -> T:
    """The noun with the function's result in the place of every tensor, in nested nouns, lists and dicts too."""
    match noun:
        case Tensor():
            return function(noun)  # type: ignore[no-any-return]
        case list() | tuple():
            return type(noun)(map_tensors(function, each) for each in noun)
        case dict():
            return {key: map_tensors(function, each) for key, each in noun.items()}  # type: ignore[return-value]
    return fieldwise(lambda each: map_tensors(function, each), noun) if is_dataclass(noun) else noun


def pad_columns(x: Tensor, left: int = 0, right: int = 0) -> Tensor:
    """x [S, N] with that many columns of zeros on either side."""
    return torch.nn.functional.pad(x, (left, right)) if left or right else x


def group_rows(groups: Tensor, group_size: int) -> Tensor:
    """Numbers of the rows of these groups."""
    return (groups[:, None] * group_size + torch.arange(group_size, device=groups.device)).flatten()


def micro_batches(count: int, size: int) -> Iterator[slice]:
    """Yields the rows 0 … count − 1 in order, at most `size` at a time; size 0 yields all at once."""
    size = size or count
    yield from (slice(start, min(start + size, count)) for start in range(0, count, size))


def numbers(noun: T) -> T:
    """The noun with every scalar tensor in it as a Python number; it waits once per device, not once per scalar."""
    found: defaultdict[torch.device, list[Tensor]] = defaultdict(list)
    map_tensors(lambda scalar: found[scalar.device].append(scalar.double()), noun)
    values = {device: iter(torch.stack(scalars).tolist()) for device, scalars in found.items()}
    return map_tensors(lambda scalar: next(values[scalar.device]), noun)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over the mask, a scalar; zero where the mask is empty."""
    return torch.where(mask, x, 0).sum() / mask.sum().clamp(min=1)


def masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    """Variance (ddof 0) of x over the mask, a scalar."""
    return masked_mean((x - masked_mean(x, mask)).square(), mask)
