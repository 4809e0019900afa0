"""Configurations as plain values, and the hashes that say which runs are the same."""

from __future__ import annotations

import hashlib
import json
from enum import Enum
from pathlib import Path
from typing import Any

from bakeoff.algorithm import Algorithm
from bakeoff.config import Config
from bakeoff.engine import EQUIVALENT
from bakeoff.engine.embedded import Embedded
from bakeoff.files import HASH, content_hash
from bakeoff.mlflow_store import NOT_IN_CONFIG_ID, defines_arm
from bakeoff.task.task import Task
from bakeoff.user_code import code_hash


def plain(config: Config) -> dict[str, Any]:
    """The configuration as nested plain values, option classes named under `_option_`.

    A key that names a file, a folder or a data set has the hash of its content beside it, as `path_sha256` beside
    `path`; code includes the modules beside it that it imports.
    """

    def of(value: Any) -> Any:
        if isinstance(value, Enum):
            return value.value
        if hasattr(value, "__dataclass_fields__"):
            named = {name: of(getattr(value, name)) for name in value.__dataclass_fields__}
            for key, path in value.files().items() if hasattr(value, "files") else ():
                if path and (found := Path(path).expanduser()).exists():  # a model's name may be one of a hub
                    named[key + HASH] = code_hash(found) if found.suffix == ".py" else content_hash(found)
            named |= {key + HASH: each for key, each in value.fingerprints.items()} if isinstance(value, Task) else {}
            return named if isinstance(value, Config | Algorithm) else {"_option_": type(value).__name__, **named}
        if isinstance(value, dict):
            return {str(k): of(v) for k, v in value.items()}
        return [of(v) for v in value] if isinstance(value, list | tuple) else value

    result: dict[str, Any] = of(config)
    return result


def by_content(values: dict[str, Any]) -> dict[str, Any]:
    """Plain values without the keys whose content is hashed: what is in a file counts, not where it is."""
    kept = {key: value for key, value in values.items() if f"{key}{HASH}" not in values}
    return {key: by_content(value) if isinstance(value, dict) else value for key, value in kept.items()}


def digest(value: Any) -> str:
    """A short hash of plain nested values: 10 hex digits of SHA-256."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def config_id(config: Config) -> str:
    """Hash of a configuration without seeds, bookkeeping and hardware: runs that differ in nothing else share it."""
    rest = {k: v for k, v in by_content(plain(config)).items() if defines_arm(k)}
    engine = {k: v for k, v in rest["engine"].items() if defines_arm(f"engine.{k}")}
    return digest(rest | {"engine": engine, "sft": rest["sft"] | {"seed": None}})


def task_id(config: Config) -> str:
    """Hash of what a tuned rate depends on beside the method: task, model and reward."""
    values = by_content(plain(config))
    return digest({key: values[key] for key in ("task", "model", "reward")})


def training_id(config: Config) -> str:
    """Hash of what decides the updates of a run, its seed included, but not their number: a run may resume longer."""
    free = {*NOT_IN_CONFIG_ID, "budget", "evaluation"} - {"seed"}
    trained = {k: v for k, v in plain(config).items() if k not in free}
    trained["engine"] = sampler_identity(config, trained)
    return digest(trained | {"final": config.evaluation.final})  # prompts that are not trained on


def sampler_identity(config: Config, values: dict[str, Any]) -> Any:
    """The engine among the plain values of a configuration; those that sample the policy itself count as one."""
    return {"_option_": Embedded.__name__} if type(config.engine) in EQUIVALENT else values["engine"]


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} → {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
