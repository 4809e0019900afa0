"""The typed schema of every Hydra group, and what identifies an arm."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from bakeoff.algorithm import AXES, Algorithm
from bakeoff.model import Model
from bakeoff.paths import ROOT
from bakeoff.reward import Reward
from bakeoff.reward.preferences import Preferences
from bakeoff.rollout import Sampler
from bakeoff.task import Task
from bakeoff.task.gym import ReasoningGym
from bakeoff.task.jsonl import Jsonl
from bakeoff.task.largest import Largest
from bakeoff.task.sort import Sort
from bakeoff.tracking import NOT_OF_THE_ARM, Tracking


@dataclass
class Sft:
    """Supervised fine-tuning on the task's demonstrations: it makes the actor's and the reference's start.

    Runs of one `seed` share their start, whatever the method. Where it is the run's seed, as on sort, a comparison is
    over starts and not from one. 0 steps: no such stage.
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
    memory_prediction  log what was predicted beside what is measured
    memory_snapshot    CUDA: record every allocation of the followed updates, as an artifact for pytorch.org/memory_viz
    """

    kl_to_reference: bool = True
    kl_sequences: int = 64
    memory_prediction: bool = False
    memory_snapshot: bool = False


@dataclass
class Checkpoint:
    """every: updates between checkpoints, 0 for none; keep: how many of the last stay."""

    every: int = 20
    keep: int = 2


@dataclass
class Study:
    """What a file in sweeps/ says of itself; no name: not part of a study.

    tuning_seeds   on which its values were chosen, apart from those that it reports
    varies         keys or groups that its arms set and that are its question, so that no report calls them unmatched
    notebook       of analysis/, which reports it
    """

    name: str = ""
    question: str = ""
    tuning_seeds: list[int] = field(default_factory=list)
    varies: list[str] = field(default_factory=list)
    notebook: str = "methods"


@dataclass
class Lengths:
    """What a prediction assumes of the texts.

    prompt       tokens of the longest prompt; 0: as the task's prompts are, where the model's tokenizer can say
    completion   tokens of the longest completion; 0: task.max_new_tokens, all of them
    """

    prompt: int = 0
    completion: int = 0


class Mode(Enum):
    """What is done: a training run, or something else with the same configuration.

    predict             the memory of every phase, without weights and device
    gradient_quality    the method's gradient at the start, against that of a large sample
    advantage_quality   the method's advantages at the start, against the mean scores of many continuations
    """

    train = "train"
    predict = "predict"
    gradient_quality = "gradient_quality"
    advantage_quality = "advantage_quality"


@dataclass
class Quality:
    """What the modes of that name measure, in rollouts of `rollout.prompts` × `rollout.group_size` completions.

    critic_updates      updates that train a critic alone, before anything is measured
    batches             rollouts whose gradients are compared
    reference_batches   rollouts whose mean gradient they are compared with
    continuations       completions from every state, twice
    """

    critic_updates: int = 40
    batches: int = 64
    reference_batches: int = 256
    continuations: int = 32


@dataclass
class Config:
    """One run. `arm_id` names what stays when the seed is taken away.

    micro_batch       so many sequences are read at once; 0: a whole minibatch
    logits_mb         so many 10⁶ bytes of float32 logits exist at once in a pass; 0: those of all its tokens
    offload           models and optimisers that a phase does not use wait in the host's memory
    deterministic     on a GPU, compute by algorithms whose results repeat bit for bit; the CPU's do in any case
    memory_limit_mb   a run that needs more than 10⁶ bytes times this ends as out of memory; 0: what there is
    mode              train, or what else to do with this configuration
    """

    task: Task = MISSING
    model: Model = MISSING
    sft: Sft = field(default_factory=Sft)
    algorithm: Algorithm = MISSING
    reward: Reward = MISSING
    preferences: Preferences = field(default_factory=Preferences)
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
    logits_mb: float = 128.0
    offload: bool = False
    deterministic: bool = False
    memory_limit_mb: float = 0.0
    mode: Mode = Mode.train
    quality: Quality = field(default_factory=Quality)
    lengths: Lengths = field(default_factory=Lengths)
    tuned: str = ""


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
    OmegaConf.register_new_resolver("div", lambda a, b: int(a) // int(b), replace=True)


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
    """The hash of what makes an arm: the configuration without seeds, bookkeeping and hardware."""
    arm = {k: v for k, v in plain(config).items() if k not in NOT_OF_THE_ARM}
    return digest(arm | {"sft": arm["sft"] | {"seed": None}})


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} → {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
