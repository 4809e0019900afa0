"""Out of memory is an outcome: the run says where it happened, who held what, and which setting saves most."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bakeoff.attribution import Label
from bakeoff.config import Config
from bakeoff.errors import UserError
from bakeoff.measure.phase import Peak, Phases
from bakeoff.measure.statistics import peak_megabytes
from bakeoff.predict import savings
from bakeoff.progress import RunProgress, megabytes
from bakeoff.tracking import OUT_OF_MEMORY, Tracker


class OutOfMemory(UserError):
    """The sentence that a run ends with."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is the allocator's error, of a GPU or of the CPU, or that of a limit."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


@contextmanager
def told(config: Config, phases: Phases, tracker: Tracker, progress: RunProgress) -> Iterator[None]:
    """Turns a lack of memory inside into OutOfMemory; the last ledger goes to the run."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        phase = phases.failed or "set-up"
        peaks = phases.take().peaks
        peak = phases.followed.get(phase, peaks.get(phase, Peak()))
        largest = max(peak.cells, key=lambda label: peak.cells[label], default=Label("unknown", "unknown"))
        tracker.tags({"outcome": OUT_OF_MEMORY, "out_of_memory.phase": phase, "out_of_memory.role": largest.role})
        tracker.metrics(peak_megabytes(peaks), 0)
        rows = [
            {"phase": name, "role": label.role, "kind": label.kind, "bytes": size}
            for name, each in (phases.followed | {phase: peak}).items()
            for label, size in each.cells.items()
        ]
        path = progress.folder / "ledger.json"
        path.write_text(json.dumps(rows, indent=1))
        tracker.artifact(path)
        held = ", where {} {} are the largest part, {}".format(*largest, megabytes(peak.cells[largest])) if rows else ""
        reason = " ".join(str(error).split())[:200]
        raise OutOfMemory(f"{OUT_OF_MEMORY} in {phase}{held} ({reason}); {hint(config, progress)}") from None


def hint(config: Config, progress: RunProgress) -> str:
    """The setting that a prediction says saves most."""
    progress.say("out of memory: predicting which setting saves most")
    try:
        settings = savings(config)
    except UserError as error:
        return f"what would help cannot be predicted: {error}"
    if not settings:
        return "every setting that saves memory is on already: choose a smaller model, rollout.prompts or group_size."
    setting, peak = settings[0]
    return f"{setting} saves most: its peak is predicted at {megabytes(peak)}."
