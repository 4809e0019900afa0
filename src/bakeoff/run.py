"""A run's loop, from the first prompt to the saved actor. It reads as the data flows.

prompts → rollout → scores → experience → update → metrics; only the algorithm differs between methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bakeoff.batch import Prompts, Rollout, Scores
from bakeoff.config import Config
from bakeoff.learner.checkpoint import save_checkpoint
from bakeoff.learner.evaluate import evaluate_policy
from bakeoff.learner.experience import make_experience
from bakeoff.learner.state import Learner
from bakeoff.learner.update import measure_step, update
from bakeoff.measure.phase import TRAINING, Phases
from bakeoff.measure.statistics import peak_megabytes, rollout_statistics
from bakeoff.model.load import encode, save
from bakeoff.progress import RunProgress
from bakeoff.randomness import derive, generator, stdlib_random
from bakeoff.tracking import Tracker

MEMORY_UPDATE = 1  # the second update, the first in which the optimisers have state, is followed on the CPU


@dataclass
class Run:
    """What a run has at hand: its configuration, its models, and where it reports."""

    config: Config
    folder: Path
    learner: Learner
    heldout: Prompts
    phases: Phases
    tracker: Tracker
    progress: RunProgress
    identity: dict[str, Any]
    signals: list[int]


def train(run: Run) -> float:
    """Trains until the budget is used; returns the last held-out greedy accuracy."""
    config, learner = run.config, run.learner
    counters, accuracy = learner.counters, 0.0
    run.progress.begin(counters.progress(config.budget))
    if counters.updates == 0 or counters.progress(config.budget) >= 1:
        accuracy = evaluate(run)["eval/greedy_accuracy"]
    while counters.progress(config.budget) < 1:
        with run.phases.following(learner.tensors(), on=counters.updates == MEMORY_UPDATE):
            metrics, rollout, scores = step(run)
        last = counters.progress(config.budget) >= 1
        if last or counters.updates % config.evaluation.every == 0:
            accuracy = evaluate(run)["eval/greedy_accuracy"]
            metrics["eval/greedy_accuracy"] = accuracy
        if last or counters.updates % config.tracking.completions_every == 0:
            run.tracker.table(completions_table(run, rollout, scores), "completions.json")
        due = last or bool(run.signals) or counters.updates % max(config.checkpoint.every, 1) == 0
        if config.checkpoint.every and due:
            run.tracker.flush()  # a run that goes on from here repeats only what comes after
            save_checkpoint(run.folder / "checkpoints", learner, run.identity, config.checkpoint.keep)
        run.progress.step(counters.updates, counters.progress(config.budget), metrics)
        if run.signals:
            raise SystemExit(128 + run.signals[0])
    save(learner.actor, run.folder / "actor")
    return accuracy


def step(run: Run) -> tuple[dict[str, float], Rollout, Scores]:
    """One update: sample, score, evaluate, learn, log."""
    config, learner, phases = run.config, run.learner, run.phases
    seed, number, device = config.seed, learner.counters.updates, learner.actor.device
    sampler, task, betas = config.rollout, config.task, learner.betas
    torch.manual_seed(derive(seed, "global", number))
    learner.set_lr_factor(config.algorithm.step.lr_factor(number, learner.counters.progress(config.budget)))
    metrics = {"policy/lr": learner.actor_optimizer.param_groups[0]["lr"]}

    with phases("rollout"):
        examples = task.training_examples(sampler.prompts, stdlib_random(seed, "prompts", number))
        prompts = encode(learner.actor, examples, task.shot_examples())
        draws = generator(device, seed, "rollout", number)
        rollout = sampler(learner.actor, prompts, sampler.group_size, task.max_new_tokens, draws)
    with phases("reward"):
        scores = config.reward(task, rollout)
    with phases("experience"):
        experience, statistics = make_experience(learner, rollout, scores, sampler.temperature, config.micro_batch)
    order = generator(device, seed, "minibatches", number)
    metrics |= statistics | rollout_statistics(rollout, scores)
    metrics |= update(learner, experience, phases, order, sampler.temperature, task.max_new_tokens, config.micro_batch)
    with phases("measure"):
        samples = config.measure.kl_sequences
        measured = measure_step(learner, experience, samples, sampler.temperature, config.micro_batch)
    metrics |= measured
    betas.behaviour = config.algorithm.kl_to_behaviour.adapt(betas.behaviour, measured["kl/behaviour_k3_per_token"])
    betas.reference = config.algorithm.kl_to_reference.adapt(
        betas.reference, metrics.get("kl/reference_k1_per_sequence", 0.0), len(experience)
    )
    metrics |= count(run, rollout)
    run.tracker.metrics(metrics, learner.counters.updates)
    return metrics, rollout, scores


def count(run: Run, rollout: Rollout) -> dict[str, float]:
    """Advances the counters by one update; returns progress, time and memory under their metric names."""
    counters = run.learner.counters
    seconds, peak_bytes = run.phases.take()
    spent = sum(seconds.get(phase, 0.0) for phase in TRAINING)
    tokens = int(rollout.sequences.mask.sum())
    counters.updates += 1
    counters.sequences += len(rollout.sequences)
    counters.tokens += tokens
    counters.seconds += spent
    return {
        "progress/sequences": counters.sequences,
        "progress/tokens": counters.tokens,
        "progress/seconds": counters.seconds,
        "speed/tokens_per_second": tokens / spent,
        **{f"time/{phase}": value for phase, value in seconds.items()},
        **peak_megabytes(peak_bytes),
    }


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
