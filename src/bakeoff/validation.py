"""Configurations that cannot work are refused in one sentence, before a model is built."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields, is_dataclass
from typing import Any, get_type_hints

import hydra
from omegaconf import DictConfig, OmegaConf

from bakeoff.algorithm import AXES, Algorithm
from bakeoff.algorithm.critic import Adapter, OwnStep
from bakeoff.algorithm.optimizer import Adafactor, Optimizer, Trpo
from bakeoff.config import Config, Mode
from bakeoff.device import HOST, choose_device
from bakeoff.engine import ENGINES
from bakeoff.engine.embedded import Embedded
from bakeoff.engine.rounded import Rounded
from bakeoff.engine.vllm import Vllm, require_vllm
from bakeoff.engine.vllm_server import VllmServer
from bakeoff.errors import GROUP, UserError, refused
from bakeoff.measure.memory import has_allocator
from bakeoff.model.config import SCRATCH, Precision
from bakeoff.nearest import name_of, unknown
from bakeoff.paths import CONF
from bakeoff.processes import place
from bakeoff.ranges import Range
from bakeoff.task import TASKS

QUALITY = (Mode.gradient_quality, Mode.advantage_quality)


def compose(overrides: Sequence[str]) -> Config:
    """The typed and checked configuration of a command line without a sweep; `register` must have run."""
    with refused(), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", overrides=list(overrides))
    return to_config(cfg)


def to_config(cfg: DictConfig) -> Config:
    """The typed and checked configuration; raises UserError with one sentence where it is impossible."""
    with refused():
        for sentence in faults(cfg):
            raise UserError(sentence)
        config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    validate(config)
    config.processes = max(config.processes, place().size)
    return config


def faults(node: DictConfig, group: str = "") -> Iterator[str]:
    """Keys of a composed configuration that its schema does not know, that are not set, or whose number is in no range.

    Every schema and every option of an axis is read here, before any is made.
    """
    kind: Any = OmegaConf.get_type(node)
    schema: dict[Any, Field[Any]] = {field.name: field for field in fields(kind)}
    groups = {name: hint for name, hint in get_type_hints(kind).items() if is_dataclass(hint)}
    for name in node:
        if name not in schema:
            yield unknown("key", str(name), schema, group)
    nested = {name for name in schema if name in node and is_dataclass(OmegaConf.get_type(node, name))}
    for name, field in sorted(schema.items(), key=lambda item: item[0] in nested):
        key = f"{group}{name}"
        if name not in node:
            yield f"{key} is not set; {key}=VALUE sets it."
        elif name in groups and not is_a(groups[name], node[name]):  # an interpolation, which OmegaConf does not check
            yield GROUP.format(key=key, group=key.replace(".", "/"))
        elif name in nested:
            yield from faults(node[name], f"{key}.")
        elif "range" in field.metadata:
            yield from outside(field.metadata["range"], key, node[name])


def is_a(group: Any, value: Any) -> bool:
    """Whether a composed value is a group of this schema."""
    kind = OmegaConf.get_type(value) if OmegaConf.is_dict(value) else None
    return kind is not None and issubclass(kind, group)


def outside(span: Range, key: str, value: Any) -> Iterator[str]:
    """A sentence for every number outside of the range, also of those in a list or a dictionary."""
    if OmegaConf.is_config(value):
        for part in value if OmegaConf.is_dict(value) else range(len(value)):
            yield from outside(span, f"{key}.{part}", value[part])
    elif isinstance(value, int | float) and not isinstance(value, bool) and value not in span:
        yield f"{key} is {value}; it must be {'' if abs(value) < math.inf else 'a finite number, '}{span}."


def validate(config: Config) -> None:
    """Raises UserError for the first settings that do not go together."""
    for sentence in impossible(config):
        raise UserError(sentence)
    if isinstance(config.engine, Vllm) and config.mode is not Mode.predict:
        require_vllm()
    if isinstance(config.engine, VllmServer) and config.mode is not Mode.predict:
        config.engine.reach()
    here = place()
    others = config.processes - 1 if config.mode is not Mode.predict else 0
    device = choose_device(config.device, here.local if here.size > 1 else others)
    if config.model.attention == "flex_attention":
        if config.mode is Mode.predict:
            raise UserError("model.attention is flex_attention, which a prediction cannot count; predict with sdpa.")
        if device == HOST:
            raise UserError(
                "model.attention is flex_attention, whose backward pass exists on GPUs alone, but the device is "
                f"{device}; set it to sdpa, or run on a GPU."
            )
    if config.model.architecture:
        from bakeoff.model.build import check_architecture  # 3 s, which other errors need not wait for

        check_architecture(config.model)
    if config.measure.memory_snapshot and not has_allocator(device):
        raise UserError(
            f"measure.memory_snapshot is true, but the device is {device}, whose allocator keeps no history; set it to "
            "false, or run on a GPU."
        )


def impossible(config: Config) -> Iterator[str]:
    """A sentence for all settings that do not go together."""
    for kind in (impossible_values, impossible_methods, impossible_rewards, impossible_turns, impossible_processes):
        yield from kind(config)


def optimizers(algorithm: Algorithm) -> dict[str, Optimizer]:
    """The options of step by their keys: the actor's, and that of a critic of its own."""
    found: dict[str, Optimizer] = {"algorithm.optimizer": algorithm.optimizer}
    if isinstance(algorithm.critic, OwnStep):
        found["algorithm.critic.optimizer"] = algorithm.critic.optimizer
    return found


def impossible_values(config: Config) -> Iterator[str]:
    """Sizes that do not fit each other."""
    algorithm, batch = config.algorithm, config.batch
    if set(config.tracking.register_model) & set("/:"):
        yield (
            f"tracking.register_model is '{config.tracking.register_model}', but the name of a registered model must "
            "have no '/' and no ':'; choose another name."
        )
    if config.price and not config.hardware.name:
        yield f"price is {config.price}, but hardware is none, which has no hours to pay for; choose hardware=NAME."
    if not config.checkpoint.actor and (config.tracking.register_model or config.checkpoint.adapter):
        key = "tracking.register_model" if config.tracking.register_model else "checkpoint.adapter"
        yield f"checkpoint.actor is false, but {key} needs the finished actor; set checkpoint.actor=true."
    if config.checkpoint.adapter and not config.model.lora.rank:
        yield "checkpoint.adapter is true, but model.lora.rank is 0: there is no adapter; set model.lora.rank."
    if config.checkpoint.adapter and config.model.name == SCRATCH and not config.sft.steps:
        yield (
            "checkpoint.adapter is true, but model.name is 'scratch' and sft.steps is 0, so the adapter's base is "
            "not saved; set checkpoint.adapter=false."
        )
    for key, option in optimizers(algorithm).items():
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
            f"algorithm.optimizer has {optimizer.epochs} epochs of {optimizer.minibatches} minibatches, but a "
            "trust-region step (algorithm/optimizer=trpo) is one step on the whole rollout; both must be 1."
        )
    if optimizer.needs_whole_rollout and config.model.precision is Precision.bfloat16_weights:
        yield (
            "model.precision is bfloat16_weights, but a trust-region step (algorithm/optimizer=trpo) moves the weights "
            "by less than they can hold; choose model.precision=bfloat16 or float32."
        )
    if optimizer.needs_whole_rollout and critic.shares_trunk:
        yield (
            "algorithm/critic is shared, but a trust-region step (algorithm/optimizer=trpo) bounds the policy alone, "
            "not a value head on its trunk; choose algorithm/critic=separate or adapter."
        )
    if algorithm.objective.fresh_only and uses > 1:
        yield (
            f"algorithm.optimizer takes {uses} steps per rollout, but algorithm/objective="
            f"{option(config, 'objective')} has no ratio and is valid for fresh samples only; choose "
            "algorithm/optimizer=adam_once, or an objective with a ratio."
        )
    if algorithm.ratio.of_sequences and algorithm.kl_to_behaviour.beta > 0:
        yield (
            f"algorithm/kl_to_behaviour is {option(config, 'kl_to_behaviour')}, which bounds the ratio of each token, "
            f"but algorithm/ratio is {option(config, 'ratio')}, which has one for the whole completion; choose "
            "algorithm/kl_to_behaviour=none or algorithm/ratio=token."
        )
    if algorithm.objective.needs_one_advantage and not algorithm.advantage.of_sequences:
        yield (
            f"algorithm/objective is {option(config, 'objective')}, which needs one advantage per completion, but "
            f"algorithm/advantage is {option(config, 'advantage')}, which has one per token; choose "
            "algorithm/advantage=sequence_return or another objective."
        )
    if algorithm.objective.needs_token_ratio and algorithm.ratio.of_sequences:
        yield (
            f"algorithm/objective is {option(config, 'objective')}, which treats some tokens of a completion "
            f"differently, but algorithm/ratio is {option(config, 'ratio')}, which has one for the whole completion; "
            "choose algorithm/ratio=token or another objective."
        )
    if config.sampling.truncates and not algorithm.correction.corrects and config.mode is Mode.train:
        yield (
            f"sampling.top_k is {config.sampling.top_k} and sampling.top_p {config.sampling.top_p:g}: samples are not "
            "the policy's, and the truncation biases its gradient; choose algorithm/correction=truncate, which "
            "weights samples, or sampling.top_k=0 sampling.top_p=1."
        )
    if isinstance(config.engine, Rounded) and config.model.lora.rank:
        yield (
            f"engine is rounded, which copies all weights, but model.lora.rank is {config.model.lora.rank}; choose "
            "engine=embedded or model.lora.rank=0."
        )
    if config.lag and config.offload:
        yield f"lag is {config.lag}, which keeps old weights on the device, but offload is true; set offload=false."
    yield from impossible_teachers(config)
    kl = algorithm.kl_to_reference
    if isinstance(critic, Adapter) and (kl.iteration_updates or not kl.reads_scores) and not config.model.lora.rank:
        yield (
            "algorithm/critic is adapter, whose frozen base is the reference, but algorithm/kl_to_reference is "
            f"{option(config, 'kl_to_reference')}, which renews or replaces it; set model.lora.rank, or choose "
            "algorithm/critic=separate."
        )


def impossible_teachers(config: Config) -> Iterator[str]:
    """A teacher that is not named, and options that would read the scores that it replaces."""
    algorithm = config.algorithm
    if algorithm.kl_to_reference.reads_scores:
        return
    chosen = f"algorithm/kl_to_reference is {option(config, 'kl_to_reference')}"
    if not algorithm.kl_to_reference.name:
        yield (
            "algorithm.kl_to_reference.name is empty; it must be the teacher, a Hugging Face name or a folder with a "
            "causal LM and its tokenizer."
        )
    of_scores = {
        "group_filter": algorithm.group_filter.rounds > 1,
        "shaping": option(config, "shaping") != "none",
        "baseline": algorithm.baseline.needs_greedy or algorithm.baseline.needs_process_rewards,
        "scale": algorithm.scale.needs_process_rewards,
    }
    for axis in (axis for axis, reads in of_scores.items() if reads):
        yield (
            f"algorithm/{axis} is {option(config, axis)}, which reads the scores of completions, but {chosen}, which "
            f"leaves them out; choose algorithm/{axis}=none."
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
    if "verifier" in reward.process and not config.task.scores_steps:
        yield (
            f"reward.process names `verifier`, but the task {name_of(config.task, TASKS)} does not score steps; "
            "choose task=sort, or name a function that scores steps by its import path."
        )
    if reward.is_learned and algorithm.kl_to_reference.iteration_updates and config.preferences.path:
        yield (
            f"preferences.path is '{config.preferences.path}', but algorithm/kl_to_reference=in_loss_iterative renews "
            "the reward model with new pairs that the task's verifier ranks; leave preferences.path empty."
        )


def impossible_turns(config: Config) -> Iterator[str]:
    """Options that read a completion as one text, for a task whose completions have several turns."""
    if config.task.most_turns == 1:
        return
    name = name_of(config.task, TASKS)
    if config.reward.is_learned:
        yield (
            f"reward.functions names `learned`, but the task {name} has several turns, and a reward model "
            "scores completions of one turn; choose reward=verifier, or a task of one turn."
        )
    if config.mode is Mode.advantage_quality:
        yield (
            f"mode is advantage_quality, which continues a completion from each of its tokens, but the task {name} has "
            "several turns; choose mode=gradient_quality, or a task of one turn."
        )


def impossible_processes(config: Config) -> Iterator[str]:
    """More processes than prompts allow, and options that one process alone supports."""
    algorithm, processes, here = config.algorithm, config.processes, place().size
    if here > 1 and processes not in (1, here):
        yield f"processes is {processes}, but {here} processes were started; set processes={here}."
    processes = max(processes, here)
    if processes == 1:
        if config.shard:
            yield "shard is true, but processes is 1, so no other process holds a part; set processes=N or shard=false."
        return
    for key, optimizer in optimizers(algorithm).items():
        fewest = config.batch.prompts // optimizer.minibatches
        if fewest < processes:
            yield (
                f"processes is {processes}, and each needs a prompt of every minibatch, but a minibatch has {fewest}: "
                f"batch.prompts is {config.batch.prompts}, and {key}.minibatches {optimizer.minibatches}; change one "
                "of the three."
            )
    yield from impossible_shards(config)
    if isinstance(config.engine, Vllm):
        yield f"engine is vllm, which decodes for one process, but processes is {processes}; set engine=embedded."
    if config.mode in QUALITY:
        yield f"mode is {config.mode.value}, which measures in one process, but processes is {processes}; set it to 1."
    if ":" in config.device:
        yield f"device is {config.device}, which is one GPU, but processes is {processes}; choose device=auto."


def impossible_shards(config: Config) -> Iterator[str]:
    """Options that need whole weights, where processes hold parts of them."""
    algorithm = config.algorithm
    if not config.shard:
        return
    whole = {
        f"model.lora.rank is {config.model.lora.rank}, whose base is frozen": config.model.lora.rank > 0,
        "algorithm/critic is adapter, whose base is another model's": isinstance(algorithm.critic, Adapter),
        "algorithm/optimizer is trpo, whose vectors are of whole weights": isinstance(algorithm.optimizer, Trpo),
        "an optimizer is adafactor, whose state is of whole rows and columns": any(
            isinstance(each, Adafactor) for each in optimizers(algorithm).values()
        ),
        "offload is true, which moves whole weights": config.offload,
        f"lag is {config.lag}, which keeps whole old weights": config.lag > 0,
        "algorithm/kl_to_reference renews whole weights": algorithm.kl_to_reference.iteration_updates > 0,
        f"engine is {name_of(config.engine, ENGINES)}, which copies whole weights": type(config.engine) is not Embedded,
    }
    for reason in (reason for reason, holds in whole.items() if holds):
        yield f"shard is true, but {reason}; set shard=false, or change that setting."


def option(config: Config, axis: str) -> str:
    """Name of the method's option on an axis: the first with the same values, or else of the same class."""
    chosen = getattr(config.algorithm, axis)
    same = [name for name, known in AXES[axis].items() if type(known) is type(chosen)]
    return next((name for name in same if AXES[axis][name] == chosen), same[0])
