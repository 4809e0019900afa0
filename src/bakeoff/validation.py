"""Configurations that cannot work are refused in one sentence, before a model is built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bakeoff.algorithm import AXES
from bakeoff.algorithm.critic import Adapter, OwnStep
from bakeoff.config import Config, Mode
from bakeoff.device import choose_device
from bakeoff.errors import UserError
from bakeoff.measure.allocator import has_allocator
from bakeoff.paths import CONF

QUALITY = (Mode.gradient_quality, Mode.advantage_quality)


def compose(overrides: Sequence[str]) -> Config:
    """The typed and checked configuration of a command line without a sweep; `register` must have run."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return to_config(hydra.compose("config", overrides=list(overrides)))


def to_config(cfg: DictConfig) -> Config:
    """The typed and checked configuration; raises UserError with one sentence where it is impossible."""
    missing = sorted(str(key) for key in OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{missing[0]} is not set; {missing[0]}=VALUE sets it.")
    try:
        config = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise UserError(" ".join(str(error).split())) from error
    assert isinstance(config, Config)
    refuse_unknown(cfg, Config)
    validate(config)
    return config


def refuse_unknown(cfg: DictConfig, of: Any, prefix: str = "") -> None:
    """Raises UserError for a key, added by `+key=value`, that no option has: it would do nothing."""
    known = [field.name for field in fields(of)]
    for key, value in cfg.items_ex(resolve=False):
        if key not in known:
            raise UserError(f"unknown key {prefix}{key!s}; valid keys are {', '.join(known)}.")
        if isinstance(value, DictConfig) and is_dataclass(below := OmegaConf.get_type(value)):
            refuse_unknown(value, below, f"{prefix}{key}.")


def validate(config: Config) -> None:
    """Raises UserError for the first setting that cannot work."""
    for refusals in (impossible_values, impossible_methods, impossible_rewards):
        for sentence in refusals(config):
            raise UserError(sentence)
    device = choose_device(config.device)
    if config.measure.memory_snapshot and not has_allocator(device):
        raise UserError(
            f"measure.memory_snapshot is true, but the device is {device}, whose allocator keeps no history; set it to "
            "false, or run on a GPU."
        )


def impossible_values(config: Config) -> Iterator[str]:
    """Values out of range, and sizes that do not fit each other."""
    algorithm, batch = config.algorithm, config.batch
    optimizers = {"algorithm.optimizer": algorithm.optimizer}
    if isinstance(algorithm.critic, OwnStep):
        optimizers["algorithm.critic.optimizer"] = algorithm.critic.optimizer
    at_least = {
        "evaluation.every": (config.evaluation.every, 1),
        "evaluation.samples": (config.evaluation.samples, 1),
        "checkpoint.every": (config.checkpoint.every, 0),
        "checkpoint.keep": (config.checkpoint.keep, 1),
        "sft.steps": (config.sft.steps, 0),
        "sft.batch": (config.sft.batch, 1),
        "micro_batch": (config.micro_batch, 0),
        "logits_mb": (config.logits_mb, 0),
        "memory_limit_mb": (config.memory_limit_mb, 0),
        "lengths.prompt": (config.lengths.prompt, 0),
        "lengths.completion": (config.lengths.completion, 0),
        "threads": (config.threads, 0),
        "measure.kl_sequences": (config.measure.kl_sequences, 0),
        "quality.critic_updates": (config.quality.critic_updates, 0),
        "quality.batches": (config.quality.batches, 2),
        "quality.reference_batches": (config.quality.reference_batches, 2),
        "quality.continuations": (config.quality.continuations, 1),
        "tracking.completions_every": (config.tracking.completions_every, 1),
        "algorithm.group_filter.rounds": (algorithm.group_filter.rounds, 1),
    }
    for key, option in optimizers.items():
        at_least[f"{key}.epochs"] = (option.epochs, 1)
        at_least[f"{key}.minibatches"] = (option.minibatches, 1)
    for key, (value, least) in at_least.items():
        if value < least:
            yield f"{key} is {value}; it must be at least {least}."
    if not config.budget.limit > 0:
        yield f"budget.limit is {config.budget.limit}; it must be above 0."
    for key, option in optimizers.items():
        if option.minibatches > batch.prompts:
            yield (
                f"{key}.minibatches is {option.minibatches}, but a rollout has only {batch.prompts} groups "
                "(batch.prompts), which minibatches do not cut; it must be at most that."
            )
    for axis in ("baseline", "scale", "group_filter"):
        least = getattr(algorithm, axis).smallest_group
        if batch.group_size < least:
            yield (
                f"batch.group_size is {batch.group_size}, but algorithm/{axis} compares the completions of "
                f"a prompt; it must be at least {least}."
            )


def impossible_methods(config: Config) -> Iterator[str]:
    """Options of a method that contradict each other."""
    algorithm = config.algorithm
    optimizer, critic = algorithm.optimizer, algorithm.critic
    uses = optimizer.epochs * optimizer.minibatches
    if algorithm.advantage.needs_critic and not critic.exists:
        yield (
            "algorithm/critic is none, but the advantage is GAE, which needs values; choose "
            "algorithm/critic=separate, shared or adapter, or algorithm/advantage=sequence_return."
        )
    if critic.shares_trunk and config.mode in QUALITY and config.quality.critic_updates:
        yield (
            f"mode is {config.mode.value}, which trains a critic while the policy stands still, but algorithm/critic "
            "is shared, whose steps move it; choose algorithm/critic=separate or adapter, or quality.critic_updates=0."
        )
    if critic.exists and not algorithm.advantage.needs_critic:
        yield (
            f"algorithm/critic is {option(config, 'critic')}, but nothing uses its values; choose "
            "algorithm/critic=none or algorithm/advantage=gae."
        )
    if optimizer.needs_whole_rollout and uses > 1:
        yield (
            f"algorithm.optimizer takes {optimizer.epochs} epochs of {optimizer.minibatches} minibatches, but a "
            "trust-region step (algorithm/optimizer=trpo) is one step on the whole rollout; both must be 1."
        )
    if optimizer.needs_whole_rollout and critic.shares_trunk:
        yield (
            "algorithm/critic is shared, but a trust-region step (algorithm/optimizer=trpo) bounds the policy alone, "
            "not a value head on its trunk; choose algorithm/critic=separate or adapter."
        )
    if algorithm.objective.fresh_only and uses > 1:
        yield (
            f"algorithm.optimizer takes {uses} steps per rollout, but algorithm/objective="
            f"{option(config, 'objective')} has no ratio and takes fresh samples only; choose "
            "algorithm/optimizer=adam_once, or an objective with a ratio."
        )
    if algorithm.ratio.of_sequences and algorithm.kl_to_behaviour.beta > 0:
        yield (
            f"algorithm/kl_to_behaviour is {option(config, 'kl_to_behaviour')}, which bounds the ratio of each token, "
            f"but algorithm/ratio is {option(config, 'ratio')}, which has one for the whole completion; choose "
            "algorithm/kl_to_behaviour=none or algorithm/ratio=token."
        )
    if algorithm.objective.of_sequences and not algorithm.advantage.of_sequences:
        yield (
            f"algorithm/objective is {option(config, 'objective')}, which takes one advantage per completion, but "
            f"algorithm/advantage is {option(config, 'advantage')}, which has one per token; choose "
            "algorithm/advantage=sequence_return or another objective."
        )
    if isinstance(critic, Adapter) and algorithm.kl_to_reference.iteration_updates and not config.model.lora.rank:
        yield (
            "algorithm/critic is adapter, whose frozen base is the reference, but algorithm/kl_to_reference="
            "in_loss_iterative changes the reference; set model.lora.rank, or choose algorithm/critic=separate."
        )


def impossible_rewards(config: Config) -> Iterator[str]:
    """Step scores that the task or the reward does not have, and a reward model that could not be renewed."""
    algorithm, reward = config.algorithm, config.reward
    for axis in ("baseline", "scale"):
        if getattr(algorithm, axis).needs_process_rewards and not reward.process:
            yield (
                f"algorithm/{axis} is {option(config, axis)}, which needs the scores of steps, but reward.process is "
                "empty; choose reward=process, or name a function of steps there."
            )
    if reward.verifies_steps and not config.task.scores_steps:
        yield (
            f"reward.process names `verifier`, but the task {type(config.task).__name__.lower()} does not score steps; "
            "choose task=sort, or name a function that scores steps by its import path."
        )
    if reward.is_learned and algorithm.kl_to_reference.iteration_updates and config.preferences.path:
        yield (
            f"preferences.path is '{config.preferences.path}', but algorithm/kl_to_reference=in_loss_iterative renews "
            "the reward model with new pairs that the task's verifier ranks; leave preferences.path empty."
        )


def option(config: Config, axis: str) -> str:
    """Name of the method's option on an axis: the first with the same values, or else of the same class."""
    chosen = getattr(config.algorithm, axis)
    same = [name for name, known in AXES[axis].items() if type(known) is type(chosen)]
    return next((name for name in same if AXES[axis][name] == chosen), same[0])
