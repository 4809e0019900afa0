"""Memory of the process: freed blocks that glibc keeps, and resident memory."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path


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
