"""The cache of keys and values that sampling and the shared reading of prompts grow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from bakeoff.attribution import attributed


def _kind() -> str:
    """In a training pass the keys and values are kept for the backward pass: activations, as all else there."""
    return "" if torch.is_grad_enabled() else "kv_cache"


class KeyValueCache(DynamicCache):  # type: ignore[misc]
    """transformers' growing cache, whose memory is put down as such, in the precision that attention computes in.

    Under autocast the rotary embedding makes float32 keys, and the cache would keep the values so too; attention casts
    both down before it reads them, so nothing is lost by keeping them that way.
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
