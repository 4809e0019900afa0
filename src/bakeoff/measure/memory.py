"""Live tensor bytes on a device that has no counting allocator: the CPU."""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def keep_freed_memory() -> None:
    """Lets glibc keep freed blocks of up to 32 MB, instead of handing them to the kernel and faulting them in again.

    Every step frees and allocates the same activations; the page faults were 8 % of an update on `tiny`
    (`make bench`). Does nothing under another C library.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        trim_threshold, mmap_threshold = -1, -3
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 1 << 30)


class TensorTracker(TorchDispatchMode):
    """Counts the bytes of every storage that operators create while the mode is on, until it is freed.

    Start it with the tensors that exist already (`held`). Each storage is counted once, whatever views it has.
    Scratch memory inside an operator is not seen.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen: set[int] = set()
        for tensor in held:
            self.watch(tensor)

    def reset_peak(self) -> None:
        """The peak starts again from what is alive now."""
        self.peak = self.live

    def watch(self, tensor: Tensor) -> None:
        """Counts the tensor's storage from now until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.watch(leaf)
        return result
