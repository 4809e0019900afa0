"""A run's folder: one process at a time works in it; its record names its run, as data that is never executed."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from bakeoff.config import Config
from bakeoff.errors import UserError, redacted
from bakeoff.files import replace_text
from bakeoff.identity import config_id, flatten, plain
from bakeoff.mlflow_store import defines_arm, find_run, open_store, store_uri
from bakeoff.progress import read
from bakeoff.reward.reward import PROCESS_REWARDS, REWARDS
from bakeoff.task.countdown import solves

RECORD, CONFIG, LOCK = "run.json", Path(".hydra", "config.yaml"), ".lock"
# what may change without making another run of it; every other key decides what is trained
MAY_CHANGE = (
    *("budget", "evaluation", "checkpoint", "tracking"),
    *("device", "threads", "processes", "shard", "deterministic", "memory_limit_mb"),
)
# keys that name code, which is imported, and the names of ours there
CODE: dict[str, Collection[str]] = {
    "reward.functions": REWARDS,
    "reward.process": PROCESS_REWARDS,
    "measure.functions": (),
    "task.function": (f"{solves.__module__}.{solves.__name__}",),
}
LARGEST = 1_000_000  # bytes of a file that a folder may have us read
SHOWN = 5  # differences that a message names


@dataclass
class Record:
    """The record of a folder: the run that it belongs to.

    config_id    hash of the run's configuration, which `.hydra/config.yaml` holds in full
    seed         seed of the run
    mlflow_run   id of its MLflow run
    uri          address of the store as it was typed, perhaps relative; the configuration holds it absolute
    choices      Hydra's options by group
    settings     overrides of the command or the sweep, in which an arm stands for its own
    parent       MLflow run of the sweep, none outside of one
    """

    config_id: str
    seed: int
    mlflow_run: str
    uri: str
    choices: dict[str, str]
    settings: list[str]
    parent: str | None = None


@contextmanager
def held(folder: Path, seconds: float) -> Iterator[None]:
    """Keeps other processes out of a folder; raises UserError if one is still in it after `seconds`."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        raise UserError(f"another process works in '{folder}'; wait for its end, or end it.") from None
    except OSError as error:
        raise UserError(f"'{folder}' cannot be written ({error.strerror}); choose another folder.") from error
    try:
        yield
    finally:
        lock.release()


def read_record(folder: Path) -> Record | None:
    """The record of a folder, none if it holds no run; raises UserError for a record that cannot be read."""
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        return Record(**json.loads(content(path)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"'{path}' cannot be read ({type(error).__name__}: {error}); the run cannot resume.") from error


def write_record(folder: Path, record: Record, config: Config) -> None:
    """Writes the record, and the configuration, with the store's absolute address without its password."""
    values = plain(config)
    values["tracking"]["uri"] = redacted(store_uri(config.tracking))
    record = replace(record, uri=redacted(record.uri))
    (folder / CONFIG).parent.mkdir(exist_ok=True)
    replace_text(folder / CONFIG, yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120))
    replace_text(folder / RECORD, json.dumps(asdict(record), indent=1))


def content(path: Path) -> str:
    """The text of a file of moderate size; raises ValueError for anything else."""
    if not path.is_file() or path.stat().st_size > LARGEST:
        raise ValueError(f"it is not a file of at most {LARGEST} bytes")
    return path.read_text(encoding="utf-8")


class Plain(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without references, by which a short file says something endless."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it holds a reference")
        return super().compose_node(parent, index)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of the run in a folder as `identity.plain` wrote it; raises UserError if it cannot be read."""
    path = folder / CONFIG
    try:
        values = yaml.load(content(path), Plain)
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in flatten(values)):
            raise ValueError("it holds no configuration")
    except (OSError, ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"'{path}' cannot be read ({reason}); the run cannot resume.") from error
    return values


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Both values by key, of every key in which two plain configurations differ; none where one has no such key."""
    a, b = flatten(one), flatten(other)
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}


def may_change(key: str) -> bool:
    """Whether a resumed run may change a key: the prompts of the last evaluation are never trained on, so they stay."""
    return key.split(".")[0] in MAY_CHANGE and key != "evaluation.final"


def longer(saved: dict[str, Any], config: Config) -> dict[str, tuple[Any, Any]] | None:
    """Changed keys with old and new value, where a configuration is a saved one with a larger budget; else none."""
    old, new = saved["budget"], config.budget
    if old["unit"] != new.unit.value or old["limit"] >= new.limit:
        return None
    changes = {k: v for k, v in differences(saved, plain(config)).items() if defines_arm(k)}
    return changes if all(may_change(key) for key in changes) else None


def described(different: dict[str, tuple[Any, Any]]) -> str:
    """`budget.limit is 4, not 6; seed is 1, not 2`."""
    shown = [f"{key} is {one}, not {other}" for key, (one, other) in list(different.items())[:SHOWN]]
    return "; ".join(shown + ([f"{len(different) - SHOWN} more keys differ"] if len(different) > SHOWN else []))


def result_of(folder: Path, config: Config) -> float | None:
    """The result of the run in a folder if it has finished with this configuration, and none if it has not.

    A run counts as finished only where the store has it, with its metrics.
    """
    record, last = read_record(folder), read(folder)
    if not record or not last or last["state"] != "done" or record.config_id != config_id(config):
        return None
    client, _ = open_store(config.tracking)
    return float(last["result"]) if find_run(client, record.mlflow_run) else None


def their_code(values: dict[str, Any]) -> dict[str, Any]:
    """The user's code that a plain configuration imports, by key: a name, a list of names, or weights by name."""
    found: dict[str, Any] = {}
    for key, ours in CODE.items():
        group, _, leaf = key.partition(".")
        within = values.get(group)
        named = within.get(leaf) if isinstance(within, dict) else None
        theirs = [name for name in names_in(named) if name not in ours]
        if theirs and isinstance(named, dict):
            found[key] = {name: weight for name, weight in named.items() if str(name) in theirs}
        elif theirs:
            found[key] = theirs if isinstance(named, list) else theirs[0]
    return found


def names_in(value: Any) -> list[str]:
    """The names of functions in the value of a key: it is one, or a list or a dict of them."""
    if isinstance(value, dict | list):
        return [str(name) for name in value]
    return [str(value)] if value else []


def allowing(key: str, named: Any) -> str:
    """The override that names these functions."""
    if isinstance(named, dict):
        return f"{key}={{{', '.join(f'{name}: {weight}' for name, weight in named.items())}}}"
    return f"{key}=[{', '.join(map(str, named))}]" if isinstance(named, list) else f"{key}={named}"


def resume_command(folder: Path, config: Config) -> str:
    """The command that resumes the run in a folder, and that names the user's functions.

    ADDRESS stands for an address with a password, which is written nowhere.
    """
    hidden = redacted(config.tracking.uri) != config.tracking.uri != os.environ.get("MLFLOW_TRACKING_URI")
    words = [f"resume={folder}", *(allowing(key, named) for key, named in their_code(plain(config)).items())]
    return "MLFLOW_TRACKING_URI=ADDRESS " * hidden + shlex.join(["bakeoff", *words])
