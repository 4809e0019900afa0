"""The memory ledger: bytes by model and kind at the peak of each phase.

The same ledger traces real tensors on any device, and the fake ones of a prediction.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bakeoff.attribution import PARKED, Label, current_label
from bakeoff.measure.memory import has_allocator

Held = Iterable[tuple[Tensor, Label]]
Cells = dict[Label, int]

PASSES = ("activations", "logits", "kv_cache")
ALLOCATOR_BLOCK = 512  # bytes: CUDA's allocator rounds every storage up to a multiple of it


class Ledger(TorchDispatchMode):
    """Counts the bytes of every storage that operators create on a device while the mode is on, until it is freed.

    device      tensors of other devices are not counted
    held        the tensors that exist already, with their labels; gradients of the parameters among them are traced
    embedding   [V, H], the shape of the output embedding. Autograd runs a backward pass outside of every scope, where
                only their shapes identify gradients of logits and of that embedding
    limit       more live bytes than that raise torch.OutOfMemoryError, as on a device of that size; 0: no limit

    Each storage is counted once, under one label, whatever views it has. Scratch memory inside an operator is
    invisible. `parked` tensors are not counted: they are in the host's memory, even where the device is the host.
    """

    def __init__(
        self, device: torch.device, held: Held = (), embedding: torch.Size | None = None, limit: int = 0
    ) -> None:
        super().__init__()
        self._device, self._block = device, ALLOCATOR_BLOCK if has_allocator(device) else 1
        self.live = 0
        self.peak = 0
        self.cells: Counter[Label] = Counter()
        self.peak_cells: Cells = {}
        self._embedding, self._limit = embedding, limit
        self._labels: dict[int, Label] = {}
        self._hooks: list[Any] = []
        for tensor, label in held:
            self.watch(tensor, label)
            if label.kind == "parameters" and tensor.is_leaf and tensor.is_floating_point():
                self._follow_gradient(tensor, Label(label.role, "gradients"))

    def __exit__(self, *exception: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*exception)

    def reset_peak(self) -> None:
        """Starts a new peak from the bytes that are live now."""
        self.peak, self.peak_cells = self.live, dict(self.cells)

    def watch(self, tensor: Tensor, label: Label) -> None:
        """Counts the tensor's storage under the label until it is freed; relabels it if it is counted already."""
        if tensor.device.type != self._device.type:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // self._block) * self._block
        if key in self._labels:
            self._count(self._labels[key], -size)
        else:
            weakref.finalize(storage, self._free, key, size).atexit = False
        self._labels[key] = label
        self._count(label, size)
        if self.live > self.peak:
            self.peak, self.peak_cells = self.live, dict(self.cells)
            if 0 < self._limit < self.live:
                raise torch.OutOfMemoryError(f"{self.live / 1e6:.1f} MB needed, {self._limit / 1e6:.1f} MB allowed")

    def _count(self, label: Label, size: int) -> None:
        if label.kind != PARKED:
            self.live += size
            self.cells[label] += size

    def _free(self, key: int, size: int) -> None:
        self._count(self._labels.pop(key), -size)

    def _follow_gradient(self, parameter: Tensor, label: Label) -> None:
        def note(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self.watch(parameter.grad, label)

        trains = parameter.requires_grad
        parameter.requires_grad_(True)  # an adapter that is not in use yet takes no hook otherwise
        self._hooks.append(parameter.register_post_accumulate_grad_hook(note))
        parameter.requires_grad_(trains)

    def _label(self, tensor: Tensor) -> Label:
        label, embedding = current_label(), self._embedding
        if embedding is not None and tensor.dim() > 1 and torch._C._current_graph_task_id() != -1:
            if tensor.shape in (embedding, embedding[::-1]):
                return Label(label.role, "gradients")
            if tensor.shape[-1] == embedding[0]:
                return Label(label.role, "logits")
        return label

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self._labels:
                label = self._label(leaf)
                if func is torch.ops.aten._to_copy.default and label.kind in PASSES:
                    source = self._labels.get(args[0].untyped_storage()._cdata, label)
                    label = source if source.kind == "parameters" else label  # autocast's copy of a weight
                self.watch(leaf, label)
        return result
