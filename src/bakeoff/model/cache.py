"""The cache of keys and values, for decoding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from bakeoff.attribution import attributed


class KeyValueCache(DynamicCache):  # type: ignore[misc]
    """transformers' cache with room for `tokens` of each sequence, in the precision that attention computes in.

    Under autocast the rotary embedding returns float32 keys, and the cache would keep float32 values too. Attention
    casts both down before it reads them, so that casting earlier loses nothing. Its memory is labelled.
    """

    def __init__(self, config: PreTrainedConfig, tokens: int) -> None:
        super().__init__(config=config)
        self.layers: list[Any] = [Roomy(tokens) if type(layer) is DynamicLayer else layer for layer in self.layers]

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        dtype = attention_dtype(keys)
        keys, values = keys.to(dtype), values.to(dtype)
        with attributed(kind="kv_cache"):
            grown: tuple[Tensor, Tensor] = super().update(keys, values, *args, **kwargs)
            return grown

    def skip(self, tokens: int) -> None:
        """Takes that number of tokens as read, for a prediction on fake tensors."""
        for layer in self.layers:
            if isinstance(layer, Roomy):
                layer.show(layer.get_seq_length() + tokens)
            else:
                batch, heads, read, width = layer.keys.shape
                layer.cumulative_length += tokens
                read = min(read + tokens, layer.sliding_window - 1)
                for name in ("keys", "values"):
                    old = getattr(layer, name)
                    setattr(layer, name, old.new_empty(0))  # freed first: a real cache never holds both of all layers
                    setattr(layer, name, old.new_empty(batch, heads, read, width))


def attention_dtype(x: Tensor) -> torch.dtype:
    """The precision in which attention reads this tensor: that of autocast where it is on, else the tensor's."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class Roomy(DynamicLayer):  # type: ignore[misc]
    """A layer with room for `tokens` of each sequence once it is repeated for its group: a token is written in place.

    transformers' own layer concatenates, and so copies what was read with every token: a tenth of the time of decoding
    from prompts of 768 tokens with SmolLM2-135M's architecture on a CPU.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens
        self._room: tuple[Tensor, ...] = ()  # of keys and of values, each [S, heads, tokens, width]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Makes the room, and repeats in it what was read for each of a group."""
        if read := self.get_seq_length():
            self._room = tuple(self._repeated(each, repeats) for each in (self.keys, self.values))
            self.show(read)

    def _repeated(self, read: Tensor, repeats: int) -> Tensor:
        rows, heads, tokens, width = read.shape
        room = read.new_empty(rows, repeats, heads, self._tokens, width)
        room[:, :, :, :tokens] = read[:, None]
        return room.flatten(0, 1)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows alone, with their room."""
        if read := self.get_seq_length():
            self._room = tuple(each[indices] for each in self._room)
            self.show(read)

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The keys and values of all tokens read, those given among them."""
        if not self._room:  # the prompts
            return super().update(keys, values, *args, **kwargs)  # type: ignore[no-any-return]
        read = self.get_seq_length()
        self.show(read + keys.shape[-2])
        self.keys[:, :, read:], self.values[:, :, read:] = keys, values
        return self.keys, self.values

    def show(self, tokens: int) -> None:
        """Takes that number of tokens as read."""
        self.keys, self.values = (each[:, :, :tokens] for each in self._room)
