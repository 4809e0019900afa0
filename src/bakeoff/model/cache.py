"""The cache of keys and values, for decoding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from bakeoff.attribution import attributed


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
        with attributed(kind="kv_cache"):
            grown: tuple[Tensor, Tensor] = super().update(keys, values, *args, **kwargs)
            return grown
