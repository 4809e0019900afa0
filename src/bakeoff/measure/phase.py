"""Seconds and peak memory of each phase of a run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bakeoff.measure.memory import TensorTracker

TRAINING = ("rollout", "reward", "experience", "actor_update", "fisher_product", "critic_update", "renewal")


@dataclass
class Phases:
    """A stopwatch and a memory gauge that the loop reads once a step.

    On CUDA the peak is the allocator's, reset at every phase. On the CPU it is the largest sum of live tensor
    bytes that the phase saw; following every tensor costs time, so the loop switches it on for single steps.
    A phase inside another is not part of it: neither its time nor its peak.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    tracker: TensorTracker | None = None
    _open: list[str] = field(default_factory=list)
    _since: float = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._note()
        self._open.append(name)
        try:
            yield
        finally:
            self._note()
            self._open.pop()

    def _note(self) -> None:
        """Credits the innermost open phase with time and peak since the last note, and starts both anew."""
        cuda, peak = self.device.type == "cuda", None
        if cuda:
            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.tracker is not None:
            peak = self.tracker.peak
            self.tracker.reset_peak()
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
            if peak is not None:
                self.peak_bytes[name] = max(peak, self.peak_bytes.get(name, 0))
        self._since = now

    @contextmanager
    def following(self, held: Iterable[Tensor], on: bool) -> Iterator[None]:
        """Follows every tensor inside, beginning with those that are `held`; on CUDA the allocator does that."""
        if not on or self.device.type == "cuda":
            yield
            return
        with TensorTracker(held) as self.tracker:
            yield
        self.tracker = None

    def take(self) -> tuple[dict[str, float], dict[str, int]]:
        """Seconds and peak bytes by phase since the last call."""
        taken = self.seconds, self.peak_bytes
        self.seconds, self.peak_bytes = {}, {}
        return taken
