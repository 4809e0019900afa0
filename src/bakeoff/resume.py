"""`resume=DIR`: the configuration that a folder holds, and what the command line may change in it."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Any, ClassVar, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from bakeoff import processes
from bakeoff.config import Config
from bakeoff.elastic import launched, starts_processes
from bakeoff.engine import ENGINES, EQUIVALENT
from bakeoff.errors import HIDDEN, UserError
from bakeoff.files import HASH
from bakeoff.folder import (
    MAY_CHANGE,
    RECORD,
    Record,
    allowing,
    described,
    differences,
    may_change,
    names_in,
    read_config,
    read_record,
    their_code,
)
from bakeoff.identity import config_id, plain
from bakeoff.job import run_job
from bakeoff.nearest import name_of
from bakeoff.signals import ends_with
from bakeoff.validation import to_config


def resume(folder: Path, arguments: list[str]) -> float:
    """Resumes the run in a folder with the configuration that it holds; returns its result.

    `arguments` are overrides of keys that may change. Raises UserError, and leaves the folder as it was, if it holds no
    run, if an override changes what is trained, or if its configuration names code that the command line does not name.
    """
    record = read_record(folder)
    if record is None:
        raise UserError(f"resume is '{folder}', which holds no run; {holding(folder)}.")
    overrides = OverridesParser.create().parse_overrides(arguments)
    saved = read_config(folder)
    refuse_code(saved, overrides, folder)
    uri = os.environ.get("MLFLOW_TRACKING_URI", record.uri)
    if uri != record.uri and isinstance(saved.get("tracking"), dict):
        saved["tracking"]["uri"] = uri  # the environment names another store than it did
    if HIDDEN in uri:
        raise UserError(f"'{folder}' leaves out the password of {uri}; set MLFLOW_TRACKING_URI to the address.")
    before: Any = OmegaConf.to_object(restored(saved))
    for key, (old, new) in differences(saved, plain(before)).items():
        if key.endswith(HASH) and old != new:
            raise UserError(
                f"the file or data that {key.removesuffix(HASH)} names has changed since the run in '{folder}' began; "
                "restore it, or start another run."
            )
    if (config_id(before), before.seed) != (record.config_id, record.seed):
        raise UserError(
            f"'{folder}' holds the configuration of another run or of another version of bakeoff; it cannot resume."
        )
    node = restored(saved)
    for override in overrides:
        apply(node, override, record)
    after = to_config(node)
    changes = differences(plain(before), plain(after))
    equivalent = type(before.engine) in EQUIVALENT and type(after.engine) in EQUIVALENT
    free = {key for key in changes if may_change(key) or (equivalent and key.startswith("engine."))}
    refused = {key: values for key, values in changes.items() if key not in free}
    if refused:
        raise UserError(
            f"the run in '{folder}' cannot change what it trains: {described(refused)}; on resume, values of "
            f"{', '.join(MAY_CHANGE)} may change, except evaluation.final, and engine among embedded, vllm and "
            "vllm_server."
        )
    if starts_processes(after):
        return launched(after, folder, [f"resume={folder}", *arguments])
    new = {f"{override.key_or_group}=": str(override.input_line) for override in overrides}
    settings = [new.get(f"{setting.split('=')[0]}=", setting) for setting in record.settings]  # arms are named by them
    choices = record.choices | {"engine": name_of(after.engine, ENGINES)}
    with ends_with(processes.launcher()):
        return run_job(after, folder, choices, settings, record.parent, quiet=False, changes=changes)


def holding(folder: Path) -> str:
    """What a folder without a run holds, and what to type instead."""
    jobs = sorted(path.parent for path in folder.glob(f"*/{RECORD}"))
    if not jobs:
        return "it must be the output folder of a run"
    return (
        f"it holds {len(jobs)} runs: resume={jobs[0]} resumes one; to resume a sweep, repeat its command with "
        f"hydra.sweep.dir={folder}"
    )


def restored(values: Any, declared: Any = Config) -> Any:
    """The configuration that `plain` wrote, typed but unchecked; a text in it is never an interpolation.

    Raises UserError for an option or a key that there is not, OmegaConf's errors for a value of another type.
    """
    if isinstance(values, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", values)
    if not hasattr(declared, "__dataclass_fields__"):
        if isinstance(values, dict):
            return {key: restored(value, None) for key, value in values.items()}
        return [restored(value, None) for value in values] if isinstance(values, list) else values
    name = values.get("_option_", declared.__name__) if isinstance(values, dict) else values
    found = next((option for option in options_of(declared) if option.__name__ == name), None)
    if found is None:
        raise UserError(f"a saved configuration holds {name!r}, which is not a {declared.__name__} of this version.")
    node, types = OmegaConf.structured(found), get_type_hints(found)
    for key, value in values.items():
        of_option = key == "_option_" or get_origin(types.get(key)) is ClassVar  # a property of it, not a key
        if not of_option and not str(key).endswith(HASH):
            node[key] = restored(value, types.get(key))
    return node


def options_of(base: type) -> list[type]:
    """A class and every class below it."""
    return [base, *itertools.chain.from_iterable(map(options_of, base.__subclasses__()))]


def refuse_code(saved: dict[str, Any], overrides: list[Override], folder: Path) -> None:
    """Raises UserError if a folder's configuration names a function that the command line does not name.

    A folder may come from anyone, and a reward function is imported by its name.
    """
    for key, named in their_code(saved).items():
        values = [each.value() for each in overrides if each.get_key_element().lstrip("+") == key]
        asked = {name for value in values for name in names_in(value)}
        for name in names_in(named):
            if name not in asked:
                raise UserError(
                    f"the run in '{folder}' imports {name!r} ({key}); to allow that, add '{allowing(key, named)}'."
                )


def apply(node: DictConfig, override: Override, record: Record) -> None:
    """Sets the value of an override; raises UserError for one that does not set a value."""
    key = override.key_or_group
    if override.is_delete() or override.is_sweep_override():
        raise UserError(f"{override.input_line} does not set one value; with resume=, write KEY=VALUE.")
    value = override.value()
    if isinstance(value, str) and record.choices.get(key) == value:
        return  # the option that the run has
    if key == "engine" and str(value) in ENGINES:
        node.engine = OmegaConf.structured(ENGINES[str(value)])
        return
    if OmegaConf.is_dict(OmegaConf.select(node, key, throw_on_missing=False)) and not isinstance(value, dict):
        raise UserError(f"{override.input_line} chooses an option, but resume= keeps those of the run.")
    OmegaConf.update(node, key, value)
