"""Seconds and peak memory of each phase of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from bakeoff.measure import TRAINING
from bakeoff.measure.ledger import Cells, Held, Ledger
from bakeoff.measure.memory import has_allocator, take_peaks


@dataclass
class Peak:
    """Peak memory of a phase on the device, in bytes.

    allocated   CUDA: by the allocator's count. CPU: the sum of live tensors
    reserved    the most that the allocator held from the device meanwhile; 0 on the CPU
    cells       the tensors that it was made of, where a ledger traced the phase
    """

    allocated: int = 0
    reserved: int = 0
    cells: Cells = field(default_factory=dict)

    def join(self, other: Peak) -> None:
        """Raises this peak, in place, to the larger of both."""
        if other.allocated > self.allocated:
            self.allocated, self.cells = other.allocated, other.cells
        self.reserved = max(self.reserved, other.reserved)

    @property
    def remainder(self) -> int:
        """Bytes that the allocator counted and no tensor explains: workspaces of libraries."""
        return self.allocated - sum(self.cells.values()) if self.cells else 0


def largest_peak(peaks: dict[str, Peak]) -> int:
    """The largest peak of the phases of training, in bytes; 0 without any."""
    return max((peak.allocated for phase, peak in peaks.items() if phase in TRAINING), default=0)


@dataclass
class Measured:
    """Seconds by the clock, seconds of the process's threads, and peaks, by phase."""

    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, Peak] = field(default_factory=dict)


@dataclass
class Phases:
    """Measures time and peak memory of the phases of an update.

    On CUDA the peak is the allocator's, reset at every phase. On the CPU it is the largest sum of live tensor bytes in
    the phase, where a ledger traces them: that costs time, so it is switched on for single updates. A phase inside
    another is not part of it: neither its time nor its peak.

    clock    seconds, of which differences count
    failed   the innermost phase that an exception left
    traced   the last peak of each phase of which the ledger knows the cells
    """

    device: torch.device
    ledger: Ledger | None = None
    clock: Callable[[], float] = time.perf_counter
    failed: str = ""
    traced: dict[str, Peak] = field(default_factory=dict)
    _measured: Measured = field(default_factory=Measured)
    _open: list[str] = field(default_factory=list)
    _since: float = 0.0
    _since_cpu: float = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measures the phase `name` while the context is open."""
        self._note()
        self._open.append(name)
        try:
            yield
        except BaseException:
            self.failed = self.failed or name
            raise
        finally:
            self._note()
            self._open.pop()

    def _note(self) -> None:
        """Credits the innermost open phase with time and peak since the last note, and starts both anew."""
        peak = self._peak()
        now, cpu = self.clock(), time.process_time()
        if self._open:
            name, measured = self._open[-1], self._measured
            measured.seconds[name] = measured.seconds.get(name, 0.0) + now - self._since
            measured.cpu_seconds[name] = measured.cpu_seconds.get(name, 0.0) + cpu - self._since_cpu
            if peak is not None:
                measured.peaks.setdefault(name, Peak()).join(peak)
                self.traced |= {name: peak} if peak.cells else {}
        self._since, self._since_cpu = now, cpu

    def _peak(self) -> Peak | None:
        """The peak since the last call, none where nothing is counted."""
        cells: Cells = {}
        allocated = reserved = 0
        if self.ledger is not None:
            allocated, cells = self.ledger.peak, self.ledger.peak_cells
            self.ledger.reset_peak()
        if has_allocator(self.device):
            allocated, reserved = take_peaks(self.device)
        elif self.ledger is None:
            return None
        return Peak(allocated, reserved, cells)

    @contextmanager
    def tracing(self, held: Held, embedding: torch.Size | None = None, limit: int = 0) -> Iterator[None]:
        """Traces every tensor while the context is open, beginning with those that are `held`: see `Ledger`."""
        with Ledger(self.device, held, embedding, limit) as self.ledger:
            try:
                yield
            finally:
                self.ledger = None

    def take(self) -> Measured:
        """Seconds and peaks by phase since the last call."""
        taken, self._measured = self._measured, Measured()
        return taken
