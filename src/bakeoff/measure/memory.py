"""Memory that allocators count and keep: CUDA's counts and history, glibc's freed blocks, resident memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def has_allocator(device: torch.device) -> bool:
    """Whether the device has an allocator that counts bytes and enforces a limit: CUDA's, not the CPU's."""
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


def keep_freed_memory() -> None:
    """Lets glibc keep freed blocks of up to 32 MB, instead of returning them to the kernel and faulting them in again.

    Every step frees and allocates the same activations; the page faults were 8 % of an update on `tiny`
    (`make bench`). Does nothing under another C library.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        trim_threshold, mmap_threshold = -1, -3
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 1 << 30)


def peak_resident_bytes() -> int | None:
    """Peak resident memory of the process since the last call; none where the system does not report it (not Linux).

    Every call resets the kernel's mark, so that a large run does not count in a later one's figure.
    """
    try:
        status = Path("/proc/self/status").read_text()
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
