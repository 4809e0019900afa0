"""The folder of each job of a sweep. A sweep's folder holds the jobs of one sweep only."""

from __future__ import annotations

import itertools
from collections.abc import Set
from pathlib import Path

from bakeoff.arms import Job
from bakeoff.config import Config
from bakeoff.errors import UserError
from bakeoff.folder import Record, described, differences, longer, read_config, read_record
from bakeoff.identity import config_id, plain
from bakeoff.mlflow_store import defines_arm

METHOD = {"arm", "algorithm"}  # settings that choose what a sweep compares


def placed(jobs: list[Job], configs: list[Config], folder: Path) -> list[Path]:
    """The folder of every job: that of its configuration and seed, also with a smaller budget, or the next free number.

    Raises UserError where the folder holds another sweep.
    """
    records = {path: record for path in sorted(folder.glob("*/")) if (record := read_record(path))}
    held_by = {(record.config_id, record.seed): path for path, record in records.items()}
    places = [held_by.pop((config_id(config), config.seed), None) for config in configs]
    settings = [[typed(job.settings) for job in jobs], [typed(record.settings) for record in records.values()]]
    varied = set.union(*map(differing, settings))
    of_arms = {record.config_id: path for path, record in records.items()}  # one of each is read
    limits = {identity: read_config(path)["budget"]["limit"] for identity, path in of_arms.items()}
    known = set()
    for n, config in enumerate(configs) if not covers(varied, "budget.limit") else ():
        for (identity, seed), path in list(held_by.items()) if places[n] is None else ():
            small = seed == config.seed and limits[identity] < config.budget.limit
            if small and longer(read_config(path), config):
                places[n] = held_by.pop((identity, seed))
                known.add(config_id(config))
                break
    refuse_another_sweep(jobs, configs, records, folder, known)
    free = (path for n in itertools.count() if (path := folder / str(n)) not in records)
    return [place or next(free) for place in places]


def refuse_another_sweep(
    jobs: list[Job], configs: list[Config], records: dict[Path, Record], folder: Path, known: Set[str]
) -> None:
    """Raises UserError if a new job differs from an earlier one in a key that neither launch nor the study varies.

    `known` are the identities of jobs that continue an earlier one. Two jobs of one method or arm are compared in every
    key, two others in the keys that were typed.
    """
    earlier = {record.config_id: (path, typed(record.settings)) for path, record in records.items()}
    new = {config_id(c): (c, typed(job.settings)) for job, c in zip(jobs, configs, strict=True)}
    saved = {path: read_config(path) for path, _ in earlier.values()}
    varied = differing([typed(job.settings) for job in jobs]) | differing([each for _, each in earlier.values()])
    varied |= {key for config in configs for key in config.study.varies}  # what an option, as a regime, sets by itself
    for config, settings in (new[identity] for identity in new.keys() - earlier - known):
        values = plain(config)
        for path, others in earlier.values():
            retyped = differing([settings, others])
            different = {
                key: both
                for key, both in differences(saved[path], values).items()
                if defines_arm(key) and key != "sft.seed"
                if not covers(varied - METHOD, key) and (not retyped & METHOD or covers(retyped - METHOD, key))
            }
            if "sweeps" in retyped:
                different |= {"sweeps": (others.get("sweeps"), settings.get("sweeps"))}
            if different:
                raise UserError(
                    f"'{folder}' holds another sweep ({described(different)}); choose another hydra.sweep.dir."
                )


def differing(each: list[dict[str, str]]) -> set[str]:
    """The keys in which some of these settings differ."""
    return {key for settings in each for key in settings if any(other.get(key) != settings[key] for other in each)}


def typed(settings: list[str]) -> dict[str, str]:
    """Settings by key; in a group's name, a dot replaces the slash."""
    pairs = (setting.lstrip("+~").partition("=") for setting in settings)
    return {key.replace("/", "."): value for key, _, value in pairs}


def covers(keys: set[str], key: str) -> bool:
    """Whether a key, or one above it, is among the keys."""
    return any(key == each or key.startswith(f"{each}.") for each in keys)
