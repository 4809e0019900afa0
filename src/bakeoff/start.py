"""The one way to start: from a configuration to a loop whose models stand at their start.

The command, the benchmark, the checks and the tests all start here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from bakeoff import processes
from bakeoff.collector import Collector
from bakeoff.config import Config
from bakeoff.device import choose_device, set_up_device
from bakeoff.errors import UserError
from bakeoff.learner.learner import make_learner
from bakeoff.learner.reward_training import learned_reward, renew_reward_model
from bakeoff.learner.sft import starting_policy
from bakeoff.learner.teacher import teacher_of
from bakeoff.loop import Loop
from bakeoff.measure.memory import keep_freed_memory
from bakeoff.measure.phase import Phases
from bakeoff.model.weights import weights_hash
from bakeoff.reward.measure import SCORED, UserMetrics
from bakeoff.task.task import CONVERSATION


def prepare(config: Config) -> Phases:
    """Sets up the process and its device for a run; returns the measure of its phases."""
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device, processes.place().local)
    set_up_device(device, config.deterministic, config.memory_limit_mb)
    return Phases(device)


def start(config: Config, phases: Phases, report: Callable[[str], None] = lambda message: None) -> Loop:
    """The loop of a configuration: start weights, reward model, learner and held-out prompts.

    `report` receives what is done next, and a message after each stage. Raises UserError for a model, data or a reward
    that cannot be used, and Diverged where a stage before the loop diverges.
    """
    name = config.model.architecture.get("model_type") if config.model.architecture else config.model.name
    report(f"building {name} and checking its passes")
    collector = collector_of(config)
    config.reward.report = report
    require_arguments(config)
    actor, supervised = starting_policy(config, collector, phases, report)
    start_hash = weights_hash(actor.network)
    if len(set(processes.every(start_hash))) > 1:
        raise UserError(
            "the processes of the run have read different start weights; let BAKEOFF_CACHE and model.name be folders "
            "that all of their machines share."
        )
    learned = learned_reward(config, collector, actor, phases, report) if config.reward.is_learned else None
    learner = make_learner(config, actor, learned.model if learned else None, teacher_of(config, actor))
    renewal = partial(renew_reward_model, learned, config.preferences, collector, report) if learned else None
    return Loop(
        learner=learner,
        collector=collector,
        phases=phases,
        heldout=collector.prompts(actor, config.task.heldout_examples()),
        kl_sequences=config.measure.kl_sequences,
        offload=config.offload,
        reward_quality=learned.quality if learned else None,
        renew_reward=renewal,
        sampling_price=config.budget.sampling_price,
        start=start_hash,
        supervised=supervised,
        user_metrics=UserMetrics(config.measure.user, config.reward, report) if config.measure.user else None,
    )


def require_arguments(config: Config) -> None:
    """Raises UserError where a function of the user needs an argument that it would not get."""
    rewards, metrics = config.reward.user.values(), config.measure.user.values()
    if rewards or metrics:
        columns = {str(name): None for example in config.task.heldout_examples() for name in example.columns}
        columns |= {CONVERSATION: None} if config.task.most_turns > 1 else {}
        for function in (*rewards, *metrics):
            function.require([*columns, *(SCORED if function in metrics else ())])


def collector_of(config: Config) -> Collector:
    """The source of scored completions of a configuration."""
    return Collector(config.task, config.engine, config.batch, config.sampling, config.reward, config.seed)
