"""A run: the loop until the budget is used, with evaluation, checkpoints, tracking and progress around each update."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bakeoff import processes
from bakeoff.config import Config
from bakeoff.errors import disk_fault, redacted
from bakeoff.heldout import HeldOut, completion_row, evaluate
from bakeoff.learner.checkpoint import save_checkpoint
from bakeoff.learner.holdings import weight_bytes
from bakeoff.loop import Collected, Loop, Update, update_once
from bakeoff.measure import STILL
from bakeoff.measure.memory import allocation_history, has_allocator, peak_resident_bytes
from bakeoff.measure.phase import largest_peak
from bakeoff.metrics import (
    heldout_metrics,
    phase_metrics,
    resident_metrics,
    update_metrics,
    user_metrics,
    weight_metrics,
)
from bakeoff.mlflow_store import COMPLETIONS, HELDOUT
from bakeoff.model.weights import save
from bakeoff.progress import RunProgress, Standing
from bakeoff.reward.measure import scored
from bakeoff.tracking import Tracker

LEAST = 3  # updates of each third
TRACED = 2  # memory is traced in two updates: optimiser state exists only from the second on


class Silent:
    """Stands where a tracker and a progress are at a process that does not lead: nothing is written."""

    def __getattr__(self, name: str) -> Any:
        return lambda *values, **named: None


@dataclass
class Run:
    """A loop with its configuration, its output folder, and where it reports.

    identity   identifies the run in its checkpoints
    signals    the signals received so far; one of them, of any process, ends the run after the update in progress
    """

    config: Config
    folder: Path
    loop: Loop
    tracker: Tracker | Silent
    progress: RunProgress | Silent
    identity: dict[str, Any]
    signals: list[int]


def train(run: Run) -> float:
    """Trains until the budget is used; returns the last held-out greedy accuracy."""
    config, counters = run.config, run.loop.learner.counters
    budget = config.budget
    heldout: HeldOut | None = None
    run.progress.begin(counters.updates, counters.progress(budget))
    rewards, largest_kl, untaught = [], 0.0, 0
    last = counters.progress(budget) >= 1
    if counters.updates == 0 or last:
        heldout = evaluate_run(run, last)
    while counters.progress(budget) < 1:
        with traced(run):
            update = update_once(run.loop, counters.progress(budget))
        log_update(run, update)
        last = counters.progress(budget) >= 1
        if last or counters.updates % config.evaluation.every == 0:
            heldout = evaluate_run(run, last)
        if last or counters.updates % config.tracking.completions_every == 0:
            run.tracker.table(completions_table(run, update.collected), COMPLETIONS)
        signals = [number for of_process in processes.every(run.signals) for number in of_process]
        due = last or bool(signals) or counters.updates % max(config.checkpoint.every, 1) == 0
        if config.checkpoint.every and due:
            checkpoint(run)
        now = standing(run, update, heldout)
        run.progress.step(now)
        rewards.append(now.reward)
        largest_kl = max(largest_kl, math.inf if now.kl is None else now.kl)
        untaught += float(update.experience.advantage_zero) == 1
        if signals:
            raise SystemExit(128 + signals[0])
    assert heldout is not None
    if still(rewards, largest_kl):
        run.progress.report(
            f"the policy has hardly moved: KL to the start at most {largest_kl:.1g} nats per completion, no rise in "
            f"reward. {remedy(config, untaught, len(rewards))}"
        )
    actor, where = run.folder / "actor", ""
    if config.checkpoint.actor:
        save(run.loop.learner.actor, actor, config.checkpoint.adapter)
        where = f"; the actor is in {actor}"
    if config.tracking.register_model:
        run.progress.report(f"registering the actor as {config.tracking.register_model}")
        run.tracker.register(actor, config.tracking.register_model)
    uri = redacted(config.tracking.uri)
    run.progress.report(
        f"held-out greedy accuracy {heldout.greedy_accuracy:.3f}{where}\n"
        f"the run: `mlflow ui --backend-store-uri {uri}`, then {run.tracker.page()}\n"
        "next, compare methods: `bakeoff -m algorithm=ppo,grpo seed=1,2` with these keys, then `bakeoff-report sweep`"
    )
    return heldout.greedy_accuracy


def still(rewards: list[float], kl: float) -> bool:
    """Whether a policy has not moved: a small KL, and rewards that do not rise above their noise."""
    third = len(rewards) // 3
    if third < LEAST or kl >= STILL:
        return False
    first, last = rewards[:third], rewards[-third:]
    noise = (statistics.variance(first) + statistics.variance(last)) / third
    return statistics.mean(last) - statistics.mean(first) <= 2 * math.sqrt(noise)


def remedy(config: Config, untaught: int, updates: int) -> str:
    """What to change where a policy did not move, of whose updates `untaught` had no advantage but zeros."""
    if untaught > updates / 2:
        return (
            f"In {untaught} of {updates} updates every advantage was zero, as where all completions of a prompt have "
            "the same reward: choose an easier task, a better start (sft.steps, model) or a reward with more levels"
        )
    optimizer = config.algorithm.optimizer
    key = f"algorithm.optimizer.{optimizer.tuned_key}"
    return f"{key}={optimizer.tuned:.3g} may be too low: try {30 * optimizer.tuned:.3g}, or `bakeoff-tune`"


def log_update(run: Run, update: Update) -> None:
    """Logs the metrics of an update."""
    if not processes.leads():
        return
    learner = run.loop.learner
    metrics = update_metrics(update, learner.counters) | resident_metrics(peak_resident_bytes())
    if run.loop.user_metrics:
        scores = update.collected.all_scores
        read = scored(update.collected.all_rollouts, scores.total.tolist(), scores.exact.tolist())
        metrics |= user_metrics(run.loop.user_metrics(read))
    if learner.counters.updates == 1:
        metrics |= weight_metrics(weight_bytes(learner))
    run.tracker.metrics(metrics, learner.counters.updates)


@contextmanager
def traced(run: Run) -> Iterator[None]:
    """Traces memory in the first two updates, and in the first two in which the actor learns.

    Where the ledger enforces a memory limit, which on a GPU the allocator does, it traces every update. CUDA's
    allocations are recorded for a snapshot if the configuration asks for it.
    """
    config, loop = run.config, run.loop
    updates, warmup = loop.learner.counters.updates, loop.learner.algorithm.critic.warmup_updates
    first = updates < TRACED or 0 <= updates - warmup < TRACED
    limit = 0 if has_allocator(loop.phases.device) else int(config.memory_limit_mb * 1e6)
    with ExitStack() as stack:
        if config.measure.memory_snapshot and first and processes.leads():
            path = run.folder / "memory_snapshot.pickle"
            stack.callback(lambda: run.tracker.artifact(path) if path.is_file() else None)
            stack.enter_context(allocation_history(path))
        if first or limit:
            stack.enter_context(loop.traced(limit))
        yield


def checkpoint(run: Run) -> None:
    """Saves the run's state, or reports why the disk does not take it.

    Its time and memory are a phase that counts towards no budget.
    """
    learner, phases = run.loop.learner, run.loop.phases
    run.tracker.flush()  # a resumed run repeats only what comes after this
    with run.loop.phase("checkpoint"):
        try:
            save_checkpoint(run.folder / "checkpoints", learner, run.identity, run.config.checkpoint.keep)
        except Exception as error:
            if not (fault := disk_fault(error)):
                raise
            run.progress.report(f"the checkpoint cannot be written ({fault}); training continues without it")
    run.tracker.metrics(phase_metrics(phases.take()), learner.counters.updates)


def evaluate_run(run: Run, last: bool) -> HeldOut:
    """Evaluates and logs held-out accuracy; its time counts towards no budget."""
    updates = run.loop.learner.counters.updates
    ends = last or updates == 0
    heldout = evaluate(run.loop, run.config.evaluation.samples, ends)
    run.loop.phases.take()
    run.tracker.metrics(heldout_metrics(heldout), updates)
    run.tracker.table([{"update": updates, **row} for row in heldout.read], HELDOUT)
    if ends and (hint := heldout.hint()):
        run.progress.report(hint)
    return heldout


def standing(run: Run, update: Update, heldout: HeldOut | None) -> Standing:
    """The run as its progress shows it after an update."""
    counters, reference = run.loop.learner.counters, update.experience.reference
    peak, rollout = largest_peak(update.measured.peaks), update.collected.rollout
    sample = f"{rollout.prompts[0]}{rollout.completions[0]}" if run.config.tracking.show_completion else None
    return Standing(
        update=counters.updates,
        share=counters.progress(run.config.budget),
        reward=float(update.collected.all_scores.total.mean()),
        failed=float(update.collected.all_scores.failed.float().mean()),
        tokens_per_second=update.collected.tokens / update.seconds,
        kl=None if reference is None else float(reference.k3_per_sequence),
        held_out=None if heldout is None else heldout.greedy_accuracy,
        memory_mb=peak / 1e6 if peak else None,
        sample=sample,
    )


def completions_table(run: Run, collected: Collected) -> list[dict[str, Any]]:
    """Rows of a table of completions for a person to read: one completion of each of the first prompts."""
    rollout, scores = collected.rollout, collected.scores
    rows = range(0, len(rollout.completions), rollout.group_size)[: run.config.tracking.completions_rows]
    updates = run.loop.learner.counters.updates
    return [{"update": updates, **completion_row(rollout, row, float(scores.total[row]))} for row in rows]
