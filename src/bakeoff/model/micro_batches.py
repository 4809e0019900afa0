"""The micro-batches of a pass: as many rows at a time as its bound on tokens allows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch._subclasses.fake_tensor import FakeTensor

from bakeoff import processes
from bakeoff.batch import Sequences
from bakeoff.model.forward import ForwardSettings
from bakeoff.model.packing import completions_per_row, equal_parts
from bakeoff.rows import select


def micro_batches(sequences: Sequences, forward: ForwardSettings) -> Iterator[slice]:
    """Yields rows in order that a pass reads as at most `micro_tokens` tokens, padding included (0: all rows at once).

    Where passes `shares_prompts`, a row is the prompt and several completions of a group; rows that are longer than the
    bound are cut into equal parts, at most into single sequences. Elsewhere each sequence is a row of its own.
    """
    count, bound = len(sequences), forward.micro_tokens
    if not bound:
        yield slice(0, count)
        return
    prompts, completions = row_lengths(sequences)

    def widths(size: int) -> list[int]:
        return [prompts[at] + sum(completions[at : at + size]) for at in range(0, count, size)]

    most = completions_per_row(sequences) if forward.shares_prompts else 1
    size = next((size for size in equal_parts(most) if max(widths(size)) <= bound), 1)
    start = widest = 0
    for number, width in enumerate(widths(size)):
        at = number * size
        if at > start and max(widest, width) * (at - start + size) > bound * size:
            yield slice(start, at)
            start, widest = at, 0
        widest = max(widest, width)
    yield slice(start, count)


def own_micro_batches(sequences: Sequences, forward: ForwardSettings) -> Iterator[slice]:
    """Yields the `micro_batches` of this process's share of the groups, as rows of all sequences."""
    size = sequences.group_size
    groups = processes.share(len(sequences) // size)
    first, last = groups.start * size, groups.stop * size
    for rows in micro_batches(select(sequences, slice(first, last)), forward) if last > first else ():
        yield slice(first + rows.start, first + rows.stop)


def row_lengths(sequences: Sequences) -> tuple[list[int], list[int]]:
    """Number of tokens of each sequence's prompt and completion that a pass reads; the maximum, in a prediction."""
    width, shown = sequences.prompt_width, sequences.completion_attention
    if isinstance(shown, FakeTensor):
        return [width] * len(shown), [shown.shape[1]] * len(shown)
    prompts, completions = torch.stack([sequences.attention[:, :width].sum(1), shown.sum(1)]).tolist()
    return prompts, completions
