"""A run's loop, from the first prompt to the saved actor. It reads as the data flows.

prompts → rollout → scores → experience → update → metrics; only the algorithm differs between methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bakeoff.attribution import Label
from bakeoff.batch import Prompts, Rollout, Scores
from bakeoff.config import Config
from bakeoff.learner.checkpoint import save_checkpoint
from bakeoff.learner.collect import Collected, collect
from bakeoff.learner.evaluate import evaluate_policy
from bakeoff.learner.experience import make_experience
from bakeoff.learner.reward_model import renew
from bakeoff.learner.state import Learner, passes_of
from bakeoff.learner.update import measure_step, update
from bakeoff.measure import TRAINING
from bakeoff.measure.allocator import allocation_history, has_allocator
from bakeoff.measure.memory import peak_resident_bytes
from bakeoff.measure.phase import Phases
from bakeoff.measure.statistics import phase_metrics, rollout_statistics, weight_megabytes
from bakeoff.model.load import save
from bakeoff.progress import RunProgress
from bakeoff.randomness import derive, generator
from bakeoff.reward.preferences import Pair
from bakeoff.tracking import Tracker

FOLLOWED = 2  # updates in a row that a ledger follows: the second is the first in which the optimisers have state


@dataclass
class Run:
    """What a run has at hand: its configuration, its models, and where it reports.

    pairs   what the reward model was trained on, where there is one
    """

    config: Config
    folder: Path
    learner: Learner
    heldout: Prompts
    phases: Phases
    tracker: Tracker
    progress: RunProgress
    identity: dict[str, Any]
    signals: list[int]
    pairs: list[Pair] = field(default_factory=list)


def train(run: Run) -> float:
    """Trains until the budget is used; returns the last held-out greedy accuracy."""
    config, learner = run.config, run.learner
    counters, accuracy = learner.counters, 0.0
    run.progress.begin(counters.updates, counters.progress(config.budget))
    if counters.updates == 0 or counters.progress(config.budget) >= 1:
        accuracy = evaluate(run)["eval/greedy_accuracy"]
    while counters.progress(config.budget) < 1:
        with followed(run):
            metrics, rollout, scores = step(run)
        last = counters.progress(config.budget) >= 1
        if last or counters.updates % config.evaluation.every == 0:
            accuracy = evaluate(run)["eval/greedy_accuracy"]
            metrics["eval/greedy_accuracy"] = accuracy
        if last or counters.updates % config.tracking.completions_every == 0:
            run.tracker.table(completions_table(run, rollout, scores), "completions.json")
        due = last or bool(run.signals) or counters.updates % max(config.checkpoint.every, 1) == 0
        if config.checkpoint.every and due:
            checkpoint(run)
        run.progress.step(counters.updates, counters.progress(config.budget), metrics)
        if run.signals:
            raise SystemExit(128 + run.signals[0])
    save(learner.actor, run.folder / "actor")
    run.progress.say(
        f"held-out greedy accuracy {accuracy:.3f}; the actor is in {run.folder / 'actor'}, the run in "
        f"{config.tracking.uri}: `mlflow ui --backend-store-uri {config.tracking.uri}` shows it. "
        "A comparison: `bakeoff sweeps=methods`, then `bakeoff-report methods`."
    )
    return accuracy


def is_followed(run: Run) -> bool:
    """Whether a ledger follows this update: the first two of all, and the first two in which the actor learns."""
    updates, warmup = run.learner.counters.updates, run.config.algorithm.critic.warmup_updates
    return updates < FOLLOWED or 0 <= updates - warmup < FOLLOWED


@contextmanager
def followed(run: Run) -> Iterator[None]:
    """Follows memory in the first updates, and in all where the ledger enforces the limit; keeps a snapshot if asked.

    On a GPU the allocator enforces the limit.
    """
    config, phases = run.config, run.phases
    first = is_followed(run)
    limit = 0 if has_allocator(phases.device) else int(config.memory_limit_mb * 1e6)
    with ExitStack() as stack:
        if config.measure.memory_snapshot and first:
            path = run.folder / "memory_snapshot.pickle"
            stack.callback(lambda: run.tracker.artifact(path) if path.is_file() else None)
            stack.enter_context(allocation_history(path))
        held = [*run.learner.held(), (run.heldout.ids, Label()), (run.heldout.attention, Label())]
        stack.enter_context(phases.following(held, run.learner.actor.embedding, limit, on=first or limit > 0))
        yield


def step(run: Run) -> tuple[dict[str, float], Rollout, Scores]:
    """One update: sample, score, evaluate, learn, log."""
    config, learner, phases = run.config, run.learner, run.phases
    seed, number, betas = config.seed, learner.counters.updates, learner.betas
    passes = passes_of(config, phases)
    torch.manual_seed(derive(seed, "global", number))
    learner.set_lr(learner.counters.progress(config.budget))
    metrics = {"policy/lr": learner.actor_optimizer.param_groups[0]["lr"]}

    collected = collect(config, learner, passes)
    metrics |= rollout_statistics(collected.all_rollouts, collected.all_scores)
    metrics["rollout/rounds"] = float(collected.rounds)
    with phases("experience"):
        experience, statistics = make_experience(learner, collected.rollout, collected.scores, collected.greedy, passes)
    metrics |= statistics
    metrics |= update(learner, experience, passes, generator(learner.actor.device, seed, "minibatches", number))
    with phases("measure"):
        measured = measure_step(learner, experience, config.measure.kl_sequences, passes)
    metrics |= measured
    betas.behaviour = config.algorithm.kl_to_behaviour.adapt(betas.behaviour, measured["kl/behaviour_k3_per_token"])
    betas.reference = config.algorithm.kl_to_reference.adapt(
        betas.reference, metrics.get("kl/reference_k1_per_sequence", 0.0), len(experience)
    )
    metrics |= count(run, collected)
    if learner.iteration_ends:
        metrics |= next_iteration(run)
    run.tracker.metrics(metrics, learner.counters.updates)
    return metrics, collected.rollout, collected.scores


def next_iteration(run: Run) -> dict[str, float]:
    """Ends an outer iteration: the reference becomes the policy, and a learned reward goes on learning."""
    learner, config = run.learner, run.config
    with run.phases("renewal"):
        learner.renew_reference()
        if learner.reward_model is None:
            return {}
        updates = learner.counters.updates
        return renew(learner.reward_model, config, learner.actor, run.pairs, updates, run.progress.say)


def count(run: Run, collected: Collected) -> dict[str, float]:
    """Advances the counters by one update; returns progress, time and memory under their metric names."""
    counters = run.learner.counters
    measured, resident = run.phases.take(), peak_resident_bytes()
    seconds = measured.seconds
    spent = sum(seconds.get(phase, 0.0) for phase in TRAINING)
    counters.updates += 1
    counters.sequences += collected.sequences
    counters.tokens += collected.tokens
    counters.seconds += spent
    return {
        "progress/sequences": counters.sequences,
        "progress/tokens": counters.tokens,
        "progress/seconds": counters.seconds,
        "speed/tokens_per_second": collected.tokens / spent,
        **phase_metrics(measured),
        **weight_megabytes(run.learner.weight_bytes() if counters.updates == 1 else {}),
        **({"memory/rss_mb": resident / 1e6} if resident else {}),
    }


def checkpoint(run: Run) -> None:
    """Saves the run's state; the time and memory of that are a phase that counts towards no budget."""
    run.tracker.flush()  # a run that goes on from here repeats only what comes after
    with run.phases("checkpoint"):
        save_checkpoint(run.folder / "checkpoints", run.learner, run.identity, run.config.checkpoint.keep)
    run.tracker.metrics(phase_metrics(run.phases.take()), run.learner.counters.updates)


def evaluate(run: Run) -> dict[str, float]:
    """Held-out accuracy now, logged; its time counts towards no budget."""
    config, updates = run.config, run.learner.counters.updates
    with run.phases("evaluation"):
        metrics = evaluate_policy(
            run.learner.actor,
            config.task,
            config.rollout,
            run.heldout,
            config.evaluation.samples,
            config.seed,
            updates,
        )
    run.phases.take()
    run.tracker.metrics(metrics, updates)
    return metrics


def completions_table(run: Run, rollout: Rollout, scores: Scores) -> list[dict[str, Any]]:
    """Some completions of the last rollout, one of each prompt, as rows for a person."""
    size = rollout.group_size
    return [
        {
            "update": run.learner.counters.updates,
            "prompt": rollout.prompts[index],
            "completion": rollout.completions[index * size],
            "answer": rollout.examples[index].answer,
            "reward": float(scores.total[index * size]),
            "ended": bool(rollout.ended[index * size]),
        }
        for index in range(min(run.config.tracking.completions_rows, len(rollout.prompts)))
    ]
