"""Forward passes over prompt and completion that every method uses: hidden states, logits, values.

The completions of a group have one prompt, which is read once for all of them: its keys and values are repeated, as in
sampling, and gradients flow through them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bakeoff.batch import Sequences
from bakeoff.model.cache import KeyValueCache
from bakeoff.model.policy import Policy, at_least_float32, recomputes
from bakeoff.model.roles import Trunk
from bakeoff.model.value import ValueModel


@dataclass
class ForwardSettings:
    """How forward passes over completions are made.

    temperature   divides the logits
    micro_batch   number of sequences read at once; 0: all
    logits_mb     upper bound on the float32 logits held at once, in 10⁶ bytes; 0: none
    """

    temperature: float = 1.0
    micro_batch: int = 0
    logits_mb: float = 0.0


def completion_logits(policy: Policy, sequences: Sequences, temperature: float = 1.0) -> Tensor:
    """Logits [S, T, V] in float32, divided by the temperature, that predict each completion token."""
    return policy.logits(completion_hidden(policy.trunk, sequences), temperature)


def completion_values(critic: ValueModel, sequences: Sequences) -> Tensor:
    """Values [S, T] of the state before each completion token, by a critic of its own."""
    values: Tensor = critic.head(at_least_float32(completion_hidden(critic.trunk, sequences)))
    return values


def completion_hidden(trunk: Trunk, sequences: Sequences) -> Tensor:
    """Last hidden states [S, T, H] at the positions that predict each completion token."""
    with trunk.computing():
        return _completion_hidden(trunk.backbone, sequences)


def _completion_hidden(backbone: PreTrainedModel, sequences: Sequences) -> Tensor:
    width, group = sequences.prompt_width, sequences.group_size

    def run(rows: slice, columns: slice, **cache: Any) -> Tensor:
        out = backbone(
            input_ids=sequences.ids[rows, columns],
            attention_mask=sequences.attention[rows, : columns.stop],
            position_ids=sequences.positions[rows, columns],
            **cache,
        )
        hidden: Tensor = out.last_hidden_state
        return hidden

    every, last = slice(None), sequences.ids.shape[1] - 1  # the last token predicts nothing: no pass reads it
    if group == 1 or (
        backbone.training and recomputes(backbone)
    ):  # a layer that recomputes its activations takes no cache
        return run(every, slice(0, last), use_cache=False)[:, width - 1 :]
    cache = KeyValueCache(config=backbone.config)
    first = run(slice(None, None, group), slice(0, width), past_key_values=cache, use_cache=True)[:, -1:]
    first = first.repeat_interleave(group, 0)
    if last == width:
        return first
    cache.batch_repeat_interleave(group)
    return torch.cat([first, run(every, slice(width, last), past_key_values=cache, use_cache=True)], 1)
