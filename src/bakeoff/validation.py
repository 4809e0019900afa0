"""What makes a configuration impossible: refused with one sentence before a model is built."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bakeoff.algorithm import AXES
from bakeoff.algorithm.critic import Adapter, OwnStep, Shared
from bakeoff.config import Config, Mode
from bakeoff.device import choose_device
from bakeoff.errors import UserError
from bakeoff.measure.allocator import has_allocator
from bakeoff.reward import LEARNED, VERIFIER

QUALITY = (Mode.gradient_quality, Mode.advantage_quality)


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
    validate(config)
    return config


def validate(config: Config) -> None:
    """Raises UserError for the first thing that cannot work."""
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
    """Values out of their range, and sizes that do not fit each other."""
    algorithm, rollout = config.algorithm, config.rollout
    steps = {"algorithm.step": algorithm.step}
    if isinstance(algorithm.critic, OwnStep):
        steps["algorithm.critic.step"] = algorithm.critic.step
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
        "algorithm.sampling.rounds": (algorithm.sampling.rounds, 1),
    }
    for key, step in steps.items():
        at_least[f"{key}.epochs"] = (step.epochs, 1)
        at_least[f"{key}.minibatches"] = (step.minibatches, 1)
    for key, (value, least) in at_least.items():
        if value < least:
            yield f"{key} is {value}; it must be at least {least}."
    if not config.budget.limit > 0:
        yield f"budget.limit is {config.budget.limit}; it must be above 0."
    for key, step in steps.items():
        if step.minibatches > rollout.prompts:
            yield (
                f"{key}.minibatches is {step.minibatches}, but a rollout has only {rollout.prompts} groups "
                "(rollout.prompts), which minibatches do not cut; it must be at most that."
            )
    for axis in ("baseline", "scale", "sampling"):
        least = getattr(algorithm, axis).smallest_group
        if rollout.group_size < least:
            yield (
                f"rollout.group_size is {rollout.group_size}, but algorithm/{axis} compares the completions of "
                f"a prompt; it must be at least {least}."
            )


def impossible_methods(config: Config) -> Iterator[str]:
    """Options of a method that contradict each other."""
    algorithm = config.algorithm
    step, critic = algorithm.step, algorithm.critic
    uses = step.epochs * step.minibatches
    if algorithm.advantage.needs_critic and not critic.exists:
        yield (
            "algorithm/critic is none, but the advantage is GAE, which needs values; choose "
            "algorithm/critic=separate, shared or adapter, or algorithm/advantage=sequence_return."
        )
    if isinstance(critic, Shared) and config.mode in QUALITY and config.quality.critic_updates:
        yield (
            f"mode is {config.mode.value}, which trains a critic while the policy stands still, but algorithm/critic "
            "is shared, whose steps move it; choose algorithm/critic=separate or adapter, or quality.critic_updates=0."
        )
    if critic.exists and not algorithm.advantage.needs_critic:
        yield (
            f"algorithm/critic is {option(config, 'critic')}, but nothing uses its values; choose "
            "algorithm/critic=none or algorithm/advantage=gae."
        )
    if step.needs_whole_rollout and uses > 1:
        yield (
            f"algorithm.step takes {step.epochs} epochs of {step.minibatches} minibatches, but a trust-region step "
            "(algorithm/step=trpo) is one step on the whole rollout; both must be 1."
        )
    if step.needs_whole_rollout and isinstance(critic, Shared):
        yield (
            "algorithm/critic is shared, but a trust-region step (algorithm/step=trpo) bounds the policy alone and "
            "says nothing about a value head on its trunk; choose algorithm/critic=separate or adapter."
        )
    if algorithm.objective.fresh_only and uses > 1:
        yield (
            f"algorithm.step takes {uses} steps a rollout, but algorithm/objective=reinforce has no ratio and takes "
            "fresh samples only; choose algorithm/step=adam_once, or an objective with a ratio."
        )
    if algorithm.ratio.of_sequences and algorithm.kl_to_behaviour.beta > 0:
        yield (
            f"algorithm/kl_to_behaviour is {option(config, 'kl_to_behaviour')}, which bounds the ratio of each token, "
            f"but algorithm/ratio is {option(config, 'ratio')}, which has one for the whole completion; choose "
            "algorithm/kl_to_behaviour=none or algorithm/ratio=token."
        )
    if isinstance(critic, Adapter) and algorithm.kl_to_reference.iteration_updates and not config.model.lora.rank:
        yield (
            "algorithm/critic is adapter, whose frozen base is the reference, but algorithm/kl_to_reference="
            "in_loss_iterative changes the reference; set model.lora.rank, or choose algorithm/critic=separate."
        )


def impossible_rewards(config: Config) -> Iterator[str]:
    """Step scores that are asked for and not there, and a reward model without a reward that uses it."""
    algorithm, reward = config.algorithm, config.reward
    for axis in ("baseline", "scale"):
        if getattr(algorithm, axis).needs_steps and not reward.steps:
            yield (
                f"algorithm/{axis} is {option(config, axis)}, which needs the scores of steps, but reward.steps is "
                "empty; choose reward=process, or name a function of steps there."
            )
    if VERIFIER in reward.steps and not config.task.scores_steps:
        yield (
            f"reward.steps names `verifier`, but the task {type(config.task).__name__.lower()} has no scores of steps; "
            "choose task=sort, or name a function of steps by its import path."
        )
    if LEARNED in reward.functions and algorithm.kl_to_reference.iteration_updates and config.preferences.path:
        yield (
            f"preferences.path is '{config.preferences.path}', but algorithm/kl_to_reference=in_loss_iterative renews "
            "the reward model with new pairs that the task's verifier ranks; leave preferences.path empty."
        )


def option(config: Config, axis: str) -> str:
    """The name of the option that a method has on an axis: the first that is made of the same values, or class."""
    chosen = getattr(config.algorithm, axis)
    same = [name for name, known in AXES[axis].items() if type(known) is type(chosen)]
    return next((name for name in same if AXES[axis][name] == chosen), same[0])
