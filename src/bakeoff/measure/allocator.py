"""CUDA's allocator: its counts, and the history that it can record. The CPU's allocator counts nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def has_allocator(device: torch.device) -> bool:
    """Whether the device has an allocator that counts bytes and enforces a limit."""
    return device.type == "cuda"


def take_peaks(device: torch.device) -> tuple[int, int]:
    """Peak bytes allocated and reserved on the GPU since the last call, after waiting for all queued work."""
    torch.cuda.synchronize(device)
    peaks = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peaks


@contextmanager
def allocation_history(path: Path) -> Iterator[None]:
    """Records every allocation in the context, with its stack, and writes them to `path` for pytorch.org/memory_viz.

    It writes them after an exception too: they are most useful where memory ran out.
    """
    torch.cuda.memory._record_memory_history()
    try:
        yield
    finally:
        try:
            torch.cuda.memory._dump_snapshot(str(path))
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)
