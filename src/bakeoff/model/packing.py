"""Sequences packed for a pass: a row for the completions of a group, its prompt once, and then they, without padding.

A completion sees its prompt and itself. Positions are those of a sequence alone, so that a token's hidden state is too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    causal_mask_function,
    sliding_window_causal_mask_function,
)

from bakeoff.batch import Sequences

Sees = Callable[[Any, Any, Any, Any], Any]  # (row, head, query, key) → whether the query sees the key

ANY_MASK = ("sdpa", "eager", "flex_attention")  # attention that takes any mask
# attention to this many tokens takes as long as one token's products with the weights, in a model of width 680
PAIRS = 4096
PADDING, PROMPT = 0, 1  # members of a row; its completions are numbered from 2


@dataclass
class Packed:
    """R rows of W tokens; the last token of a completion predicts nothing and is left out.

    ids        [R, W] int64
    positions  [R, W] int64
    member     [R, W] int64, the prompt or completion that a token is part of
    predictors [N] int64, place in the flattened rows of the token whose hidden state predicts token n of the mask
    places     [N] int64, place of token n of the mask in the flattened [S, T]
    """

    ids: Tensor
    positions: Tensor
    member: Tensor
    predictors: Tensor
    places: Tensor


def pack(sequences: Sequences) -> Packed:
    """The sequences as rows; waits once for the device, which knows the lengths."""
    mask, group, width = sequences.mask, sequences.group_size, sequences.prompt_width
    shown = sequences.completion_attention
    count, columns = sequences.ids.shape
    number, column = (torch.arange(n, device=mask.device) for n in (count, columns))
    prompt = sequences.attention[:, :width] & (number % group == 0)[:, None]
    read = torch.cat([prompt, shown[:, 1:], torch.zeros_like(mask[:, :1])], 1).view(count // group, -1)
    place = read.cumsum(1) - 1  # in its row, of every token that is read
    longest, tokens = sizes(sequences, read)
    target = torch.where(read, place, longest)  # what is not read goes to one more column, which is cut off

    def rows(x: Tensor) -> Tensor:
        empty = x.new_zeros(len(read), longest + 1)
        return empty.scatter(1, target, x.reshape(len(read), -1))[:, :longest]

    member = torch.where(column < width, PROMPT, (number % group)[:, None] + PROMPT + 1)
    token = mask.flatten().nonzero_static(size=tokens).squeeze(1)
    sequence, step = token // mask.shape[1], token % mask.shape[1]
    source = torch.where(step == 0, sequence // group * group, sequence)  # the prompt is in the first row of its group
    predictors = sequence // group * longest + place.view(count, -1)[source, width - 1 + step]
    return Packed(rows(sequences.ids), rows(sequences.positions), rows(member), predictors, token)


def sizes(sequences: Sequences, read: Tensor) -> tuple[int, int]:
    """Number of tokens of the longest row, and of the mask; the maximum, in a prediction."""
    mask = sequences.mask
    if isinstance(mask, FakeTensor):
        return sequences.prompt_width + sequences.group_size * (mask.shape[1] - 1), mask.numel()
    longest, tokens = torch.stack([read.sum(1).max(), mask.sum()]).tolist()
    return longest, tokens


def windows(config: PreTrainedConfig) -> dict[str, int | None]:
    """The kinds of layers by transformers' names, and the number of latest positions that each sees; none: all."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"]
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(set(kinds))}


@cache
def takes_positions(forward: Callable[..., Any]) -> bool:
    """Whether a network with this forward pass is given the positions of its tokens, and does not count them itself."""
    return "position_ids" in inspect.signature(forward).parameters


def shares_prompts(backbone: PreTrainedModel) -> bool:
    """Whether the completions of a group can be in one row: the network takes positions, and its layers any mask."""
    config, known = backbone.config, {"full_attention", "sliding_attention"}
    any_mask = config._attn_implementation in ANY_MASK and windows(config).keys() <= known
    return any_mask and takes_positions(type(backbone).forward)


def skips_blocks(backbone: PreTrainedModel) -> bool:
    """Whether attention skips the blocks of a mask that nobody sees, so that a row may hold a whole group."""
    return bool(backbone.config._attn_implementation == "flex_attention")


def completions_per_row(sequences: Sequences) -> int:
    """Number of completions of a group that a row holds where the mask is dense: the divisor of its size of least work.

    A row of W tokens takes W · (1 + W ÷ PAIRS). So long completions are best in rows of few, but prompts are then read
    again, and rows differ more in length: W is about that of the longest row, with completions of half the budget or
    more.
    """
    group, prompt, completion = sequences.group_size, sequences.prompt_width, sequences.mask.shape[1]

    def work(size: int) -> float:
        width = prompt + completion * (3 * size + 1) / 4
        return width * (1 + width / PAIRS) / size

    return min(equal_parts(group), key=work)


def equal_parts(size: int) -> list[int]:
    """The sizes of equal parts of a group of this size, the largest first."""
    return [part for part in range(size, 0, -1) if size % part == 0]


def group_mask(backbone: PreTrainedModel, packed: Packed) -> Any:
    """The mask of rows of several completions, as the network's attention takes it; by kind of layer, if several."""
    member, positions = packed.member, packed.positions
    make = ALL_MASK_ATTENTION_FUNCTIONS[backbone.config._attn_implementation]
    rows, width = member.shape

    def mask(alone: Sees) -> Any:
        def sees(row: Any, head: Any, query: Any, key: Any) -> Any:
            shared = (member[row, key] == PROMPT) | (member[row, key] == member[row, query])
            return shared & alone(row, head, positions[row, query], positions[row, key])

        return make(
            batch_size=rows,
            q_length=width,
            kv_length=width,
            mask_function=sees,
            allow_is_causal_skip=False,
            dtype=backbone.dtype,
            device=member.device,
        )

    return by_layer(
        {
            kind: mask(sliding_window_causal_mask_function(window) if window else causal_mask_function)
            for kind, window in windows(backbone.config).items()
        }
    )


def added_mask(backbone: PreTrainedModel, attention: Tensor, dtype: torch.dtype) -> Tensor:
    """[S, L] that says what is not padding as sdpa adds it to its scores, 0 or −∞; as it is for other attention.

    From a boolean mask sdpa would make this one in every layer, for every token.
    """
    if backbone.config._attn_implementation != "sdpa" or not shares_prompts(backbone):
        return attention
    return torch.zeros_like(attention, dtype=dtype).masked_fill_(~attention, -torch.inf)


def decoding_mask(backbone: PreTrainedModel, attention: Tensor) -> Any:
    """The mask of one more token of each completion, from an `added_mask` [S, L].

    Given it without its other dimensions, transformers looks at every token whether there is padding, and waits.
    """
    if not attention.is_floating_point():
        return attention
    seen = {kind: window or attention.shape[1] for kind, window in windows(backbone.config).items()}
    return by_layer({kind: aligned(attention[:, -length:])[:, None, None] for kind, length in seen.items()})


def aligned(mask: Tensor) -> Tensor:
    """The mask where a kernel of CUDA's sdpa may read it: at a multiple of eight values. A window may begin between."""
    return mask.clone() if mask.storage_offset() % 8 else mask


def by_layer(masks: dict[str, Any]) -> Any:
    """Masks as a network takes them: by kind of layer, or the one that all layers have."""
    return masks if len(masks) > 1 else masks.popitem()[1]
