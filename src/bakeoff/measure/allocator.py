"""CUDA's allocator: what it counts, and the history that it can keep. The CPU has none that counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def has_allocator(device: torch.device) -> bool:
    """Whether the device has an allocator that counts its bytes and keeps a limit."""
    return device.type == "cuda"


def take_peaks(device: torch.device) -> tuple[int, int]:
    """The most bytes that were allocated and reserved on the GPU since the last call, after all that is queued."""
    torch.cuda.synchronize(device)
    peaks = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peaks


@contextmanager
def allocation_history(path: Path) -> Iterator[None]:
    """Records every allocation inside, with its stack, and writes them to `path` for pytorch.org/memory_viz.

    They are written also where an exception leaves: where memory ran out, they are wanted most.
    """
    torch.cuda.memory._record_memory_history()
    try:
        yield
    finally:
        try:
            torch.cuda.memory._dump_snapshot(str(path))
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)
