"""The cache of keys and values, for decoding and for prompts that a group shares."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from bakeoff.attribution import attributed


def _kind() -> str:
    """Kind of the cache's memory: in a training pass it is kept for the backward pass, as all activations are."""
    return "" if torch.is_grad_enabled() else "kv_cache"


class KeyValueCache(DynamicCache):  # type: ignore[misc]
    """transformers' growing cache, with its memory labelled, in the precision that attention computes in.

    Under autocast the rotary embedding returns float32 keys, and the cache would keep float32 values too. Attention
    casts both down before it reads them, so that casting earlier loses nothing.
    """

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        device = keys.device.type
        if torch.is_autocast_enabled(device):
            low = torch.get_autocast_dtype(device)
            keys, values = keys.to(low), values.to(low)
        with attributed(kind=_kind()):
            grown: tuple[Tensor, Tensor] = super().update(keys, values, *args, **kwargs)
            return grown

    def batch_repeat_interleave(self, repeats: int) -> None:
        with attributed(kind=_kind()):
            super().batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        with attributed(kind=_kind()):
            super().batch_select_indices(indices)
