"""Seconds and peak memory of each phase of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from bakeoff.measure.allocator import has_allocator, take_peaks
from bakeoff.measure.ledger import Cells, Held, Ledger


@dataclass
class Peak:
    """The most memory that a phase used on the device, in bytes.

    allocated   CUDA: by the allocator's count. CPU: the sum of live tensors
    reserved    what the allocator held from the device meanwhile; the CPU has no such thing
    cells       what it was made of, where a ledger followed the phase
    """

    allocated: int = 0
    reserved: int = 0
    cells: Cells = field(default_factory=dict)

    def join(self, other: Peak) -> None:
        """The larger of both."""
        if other.allocated > self.allocated:
            self.allocated, self.cells = other.allocated, other.cells
        self.reserved = max(self.reserved, other.reserved)

    @property
    def remainder(self) -> int:
        """What the allocator counted and no tensor explains: workspaces of libraries."""
        return self.allocated - sum(self.cells.values()) if self.cells else 0


@dataclass
class Measured:
    """Seconds and peaks by phase."""

    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, Peak] = field(default_factory=dict)


@dataclass
class Phases:
    """A stopwatch and a memory gauge that the loop reads once a step.

    On CUDA the peak is the allocator's, reset at every phase. On the CPU it is the largest sum of live tensor
    bytes that the phase saw. Which tensors they were is known where a ledger follows: that costs time, so the loop
    switches it on for single steps. A phase inside another is not part of it: neither its time nor its peak.
    `before` is called with the name of every phase before it begins. `failed` is the phase that an exception
    left, the innermost one; `followed` keeps the last peak of each phase of which the ledger knows the cells.
    """

    device: torch.device
    ledger: Ledger | None = None
    before: Callable[[str], None] | None = None
    failed: str = ""
    followed: dict[str, Peak] = field(default_factory=dict)
    _measured: Measured = field(default_factory=Measured)
    _open: list[str] = field(default_factory=list)
    _since: float = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self.before is not None:
            self.before(name)
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
        now = time.perf_counter()
        if self._open:
            name, measured = self._open[-1], self._measured
            measured.seconds[name] = measured.seconds.get(name, 0.0) + now - self._since
            if peak is not None:
                measured.peaks.setdefault(name, Peak()).join(peak)
                self.followed |= {name: peak} if peak.cells else {}
        self._since = now

    def _peak(self) -> Peak | None:
        """The peak since the last call, none where nothing counts."""
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
    def following(
        self, held: Held, embedding: torch.Size | None = None, limit: int = 0, on: bool = True
    ) -> Iterator[None]:
        """Follows every tensor inside, beginning with those that are `held`: see `Ledger`."""
        if not on:
            yield
            return
        with Ledger(self.device, held, embedding, limit) as self.ledger:
            try:
                yield
            finally:
                self.ledger = None

    def take(self) -> Measured:
        """Seconds and peaks by phase since the last call."""
        taken, self._measured = self._measured, Measured()
        return taken
