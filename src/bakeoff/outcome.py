"""Runs that end before their budget: out of memory, or diverged. Each is recorded, and explained in one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter

from bakeoff.algorithm.divergence import Diverged
from bakeoff.attribution import Label
from bakeoff.config import Config
from bakeoff.device import is_out_of_memory
from bakeoff.errors import UserError
from bakeoff.learner.checkpoint import checkpoints
from bakeoff.measure.phase import Peak, Phases
from bakeoff.metrics import peak_metrics
from bakeoff.mlflow_store import DIVERGED, OUT_OF_MEMORY
from bakeoff.progress import RunProgress
from bakeoff.savings import savings
from bakeoff.terminal import megabytes
from bakeoff.tracking import Tracker

STAGES = {
    **dict.fromkeys(("sft", "sft_accuracy"), "the supervised start"),
    "reward_model": "the training of the reward model",
}
# phase → the learning rate of its steps; every other phase follows the actor's
RATES = {
    "sft": "sft.lr",
    "sft_accuracy": "sft.lr",
    "reward_model": "preferences.lr",
    "renewal": "preferences.lr",
    "critic_update": "algorithm.critic.optimizer.lr",
}


@contextmanager
def explained(config: Config, phases: Phases, tracker: Tracker, progress: RunProgress) -> Iterator[None]:
    """Turns divergence and lack of memory into a UserError, after tagging the run with its outcome."""
    try:
        yield
    except Diverged as error:
        tracker.tags({"outcome": DIVERGED})
        found = checkpoints(progress.folder / "checkpoints")
        kept = f"the last checkpoint is {found[-1]}" if found else "there is no checkpoint"
        raise UserError(f"{divergence(error, config, phases.failed, progress.updates)}; {kept}.") from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        sentence = lack_of_memory(error, phases, tracker, progress)
        raise UserError(f"{sentence}; {hint(config, progress)}") from None


@contextmanager
def divergence_named(config: Config, phases: Phases) -> Iterator[None]:
    """Turns divergence of a stage outside of a run into a UserError that names the stage and a remedy."""
    try:
        yield
    except Diverged as error:
        raise UserError(f"{divergence(error, config, phases.failed)}.") from error


def divergence(error: Diverged, config: Config, phase: str, updates: int = 0) -> str:
    """Where training diverged, after this number of finished updates, and which learning rate to lower."""
    where = STAGES.get(phase, f"update {updates + 1}, phase {phase}")
    critic = error.of_critic and config.algorithm.critic.takes_steps
    rate = RATES.get("critic_update" if critic else phase, "algorithm.optimizer.lr")
    rewards = "" if phase in STAGES else " or smaller rewards"
    return f"{DIVERGED} in {where}: {error}. A lower {rate} (it was {attrgetter(rate)(config):g}){rewards} may help"


def lack_of_memory(error: BaseException, phases: Phases, tracker: Tracker, progress: RunProgress) -> str:
    """The phase in which memory ran out and the largest holder; logs the last ledger of each phase."""
    phase = phases.failed or "set-up"
    peaks = phases.take().peaks
    peak = phases.traced.get(phase, peaks.get(phase, Peak()))
    largest = max(peak.cells, key=lambda label: peak.cells[label], default=Label("unknown", "unknown"))
    tracker.tags({"outcome": OUT_OF_MEMORY, "out_of_memory.phase": phase, "out_of_memory.role": largest.role})
    tracker.metrics(peak_metrics(peaks), 0)
    rows = [
        {"phase": name, "role": label.role, "kind": label.kind, "bytes": size}
        for name, each in (phases.traced | {phase: peak}).items()
        for label, size in each.cells.items()
    ]
    path = progress.folder / "ledger.json"
    path.write_text(json.dumps(rows, indent=1))
    tracker.artifact(path)
    size = megabytes(peak.cells.get(largest, 0))
    held = f", where {largest.role} {largest.kind} are the largest part, {size}" if peak.cells else ""
    reason = " ".join(str(error).split())[:200]
    return f"{OUT_OF_MEMORY} in {phase}{held} ({reason})"


def hint(config: Config, progress: RunProgress) -> str:
    """The setting that saves most according to a prediction."""
    progress.report("out of memory: predicting which setting saves most")
    try:
        settings = savings(config)
    except UserError as error:
        return f"no remedy can be predicted: {error}"
    if not settings:
        return "no setting saves memory any more; choose a smaller model, batch.prompts or batch.group_size."
    setting, peak = settings[0]
    return f"{setting} saves most: its peak is predicted at {megabytes(peak)}."
