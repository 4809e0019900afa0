"""Seconds and peak memory of each phase of a run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bakeoff.measure.memory import TensorTracker

TRAINING = ("rollout", "reward", "experience", "actor_update", "critic_update")


@dataclass
class Phases:
    """A stopwatch and a memory gauge that the loop reads once a step.

    On CUDA the peak is the allocator's, reset at every phase. On the CPU it is the largest sum of live tensor
    bytes that the phase saw; following every tensor costs time, so the loop switches it on for single steps.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    tracker: TensorTracker | None = None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.tracker is not None:
            self.tracker.reset_peak()
        start = time.perf_counter()
        try:
            yield
        finally:
            if cuda:
                torch.cuda.synchronize(self.device)
                self._peak(name, torch.cuda.max_memory_allocated(self.device))
            elif self.tracker is not None:
                self._peak(name, self.tracker.peak)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    @contextmanager
    def following(self, held: Iterable[Tensor], on: bool) -> Iterator[None]:
        """Follows every tensor inside, beginning with those that are `held`; on CUDA the allocator does that."""
        if not on or self.device.type == "cuda":
            yield
            return
        with TensorTracker(held) as self.tracker:
            yield
        self.tracker = None

    def _peak(self, name: str, value: int) -> None:
        self.peak_bytes[name] = max(value, self.peak_bytes.get(name, 0))

    def take(self) -> tuple[dict[str, float], dict[str, int]]:
        """Seconds and peak bytes by phase since the last call."""
        taken = self.seconds, self.peak_bytes
        self.seconds, self.peak_bytes = {}, {}
        return taken
