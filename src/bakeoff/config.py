"""The typed schema of every Hydra group, what makes a configuration impossible, and what identifies an arm."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bakeoff.algorithm import AXES, Algorithm
from bakeoff.errors import UserError
from bakeoff.model import Model
from bakeoff.paths import ROOT
from bakeoff.reward import Reward
from bakeoff.rollout import Sampler
from bakeoff.task import Task
from bakeoff.task.gym import ReasoningGym
from bakeoff.task.jsonl import Jsonl
from bakeoff.task.largest import Largest
from bakeoff.task.sort import Sort


@dataclass
class Sft:
    """Supervised fine-tuning on the task's demonstrations: it makes the actor's and the reference's start.

    Its seed is not the run's: every run of a comparison starts from the same weights. 0 steps: no such stage.
    """

    steps: int = 0
    batch: int = 256
    lr: float = 3e-3
    seed: int = 0


class Unit(Enum):
    """What a budget counts."""

    updates = "updates"
    sequences = "sequences"
    tokens = "tokens"
    seconds = "seconds"


@dataclass
class Budget:
    """A run ends with the first update at which `limit` units are used; seconds are those of training alone."""

    unit: Unit = Unit.sequences
    limit: float = 25_600


@dataclass
class Evaluation:
    """every: updates between evaluations, at the start and at the end too; samples: per prompt, beside greedy."""

    every: int = 10
    samples: int = 1


@dataclass
class Measure:
    """What is measured beyond what training needs.

    kl_to_reference    keep a reference for measuring, even where the method itself asks for none
    kl_sequences       of so many sequences the KL of the update is measured, by a pass after it; 0: of all
    """

    kl_to_reference: bool = True
    kl_sequences: int = 64


@dataclass
class Checkpoint:
    """every: updates between checkpoints, 0 for none; keep: how many of the last stay."""

    every: int = 20
    keep: int = 2


@dataclass
class Tracking:
    """uri: of the MLflow store; completions_every: updates between tables of completions, of so many rows."""

    uri: str = MISSING
    experiment: str = "bakeoff"
    completions_every: int = 25
    completions_rows: int = 16


@dataclass
class Study:
    """What a file in sweeps/ says of itself; no name: not part of a study."""

    name: str = ""
    question: str = ""
    tuning_seeds: list[int] = field(default_factory=list)


@dataclass
class Config:
    """One run. `arm_id` names what stays when the seed is taken away."""

    task: Task = MISSING
    model: Model = MISSING
    sft: Sft = field(default_factory=Sft)
    algorithm: Algorithm = MISSING
    reward: Reward = MISSING
    rollout: Sampler = MISSING
    budget: Budget = field(default_factory=Budget)
    evaluation: Evaluation = field(default_factory=Evaluation)
    measure: Measure = field(default_factory=Measure)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    tracking: Tracking = MISSING
    study: Study = field(default_factory=Study)
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    micro_batch: int = 0
    tuned: str = ""


NOT_OF_THE_ARM = ("seed", "study", "tracking", "checkpoint", "device", "threads", "tuned")


def register() -> None:
    """Tells Hydra the schemas and where conf/ and sweeps/ are. Idempotent."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for axis, options in AXES.items():
        for name, option in options.items():
            store.store(group=f"algorithm/{axis}", name=name, node=option)
    tasks = {"sort": Sort, "largest": Largest, "reasoning_gym": ReasoningGym, "jsonl": Jsonl}
    others = {"model": Model, "reward": Reward, "rollout": Sampler, "tracking": Tracking}
    for name, schema in (tasks | others).items():
        store.store(name=f"schema_{name}", node=schema)
    OmegaConf.register_new_resolver("bakeoff_root", lambda: str(ROOT), replace=True)


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
    """Refuses what cannot work, before a model is built; raises UserError."""
    algorithm, rollout = config.algorithm, config.rollout
    step, critic = algorithm.step, algorithm.critic
    at_least = {
        "algorithm.step.epochs": (step.epochs, 1),
        "algorithm.step.minibatches": (step.minibatches, 1),
        "evaluation.every": (config.evaluation.every, 1),
        "evaluation.samples": (config.evaluation.samples, 1),
        "checkpoint.every": (config.checkpoint.every, 0),
        "checkpoint.keep": (config.checkpoint.keep, 1),
        "sft.steps": (config.sft.steps, 0),
        "sft.batch": (config.sft.batch, 1),
        "micro_batch": (config.micro_batch, 0),
        "threads": (config.threads, 0),
        "measure.kl_sequences": (config.measure.kl_sequences, 0),
        "tracking.completions_every": (config.tracking.completions_every, 1),
    }
    for key, (value, least) in at_least.items():
        if value < least:
            raise UserError(f"{key} is {value}; it must be at least {least}.")
    if not config.budget.limit > 0:
        raise UserError(f"budget.limit is {config.budget.limit}; it must be above 0.")
    if step.minibatches > rollout.prompts:
        raise UserError(
            f"algorithm.step.minibatches is {step.minibatches}, but a rollout has only {rollout.prompts} groups "
            "(rollout.prompts), which minibatches do not cut; it must be at most that."
        )
    if algorithm.advantage.needs_critic and not critic.exists:
        raise UserError(
            "algorithm/critic is none, but the advantage is GAE, which needs values; choose "
            "algorithm/critic=separate or shared, or algorithm/advantage=sequence_return."
        )
    if critic.exists and not algorithm.advantage.needs_critic:
        raise UserError(
            f"algorithm/critic is {type(critic).__name__.lower()}, but nothing uses its values; choose "
            "algorithm/critic=none or algorithm/advantage=gae."
        )
    for axis in ("baseline", "scale"):
        option = getattr(algorithm, axis)
        if rollout.group_size < option.smallest_group:
            raise UserError(
                f"rollout.group_size is {rollout.group_size}, but algorithm/{axis} compares the completions of "
                f"a prompt; it must be at least {option.smallest_group}."
            )
    if config.device != "auto":
        try:
            torch.empty(0, device=config.device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(
                f"device is {config.device!r}, which this machine has not; it may be auto or cpu."
            ) from error


def plain(config: Config) -> dict[str, Any]:
    """The configuration as nested plain values, option classes named under `_option_`."""

    def of(value: Any) -> Any:
        if isinstance(value, Enum):
            return value.value
        if hasattr(value, "__dataclass_fields__"):
            named = {name: of(getattr(value, name)) for name in value.__dataclass_fields__}
            return named if isinstance(value, Config | Algorithm) else {"_option_": type(value).__name__, **named}
        if isinstance(value, dict):
            return {str(k): of(v) for k, v in value.items()}
        return [of(v) for v in value] if isinstance(value, list | tuple) else value

    result: dict[str, Any] = of(config)
    return result


def digest(value: Any) -> str:
    """A short hash of plain nested values: 10 hex digits of SHA-256."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def arm_id(config: Config) -> str:
    """The hash of what makes an arm: the configuration without seed, bookkeeping and hardware."""
    return digest({k: v for k, v in plain(config).items() if k not in NOT_OF_THE_ARM})


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} → {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
