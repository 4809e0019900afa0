"""The jobs of a sweep: its arms, and the values that it sweeps. An arm is a name for a list of overrides."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from bakeoff.errors import UserError
from bakeoff.nearest import unknown
from bakeoff.terminal import rounded

Arms = Mapping[str, list[str]]
HEADS = ("algorithm=", "arm=", "seed=")  # settings that every name of a job has


@dataclass
class Job:
    """One run of a sweep.

    settings    overrides that identify the job, such as `arm=critic_none` and `seed=1`; reports name arms by them
    overrides   overrides that Hydra composes: the settings, and those of the arm
    """

    settings: list[str]
    overrides: list[str]


def arms_of(sweeper: DictConfig) -> Arms:
    """The arms of a sweeper's configuration."""
    return {name: unresolved(overrides) for name, overrides in (sweeper.get("arms") or {}).items()}


def unresolved(overrides: Any) -> list[str]:
    """Overrides as they were written: `${model}` in an override is for Hydra, which knows the choice of model."""
    plain: Any = OmegaConf.to_container(overrides, resolve=False)
    return [str(override) for override in plain]


def grid(sweeper: DictConfig, arguments: list[str], loader: ConfigLoader) -> list[Job]:
    """Every arm with every combination of the swept values; `arguments` are the command line's overrides.

    A value on the command line replaces an arm's, and an arm's replaces that of `params`.
    """
    parser = OverridesParser.create(config_loader=loader)
    arms = arms_of(sweeper)
    params = [f"{key}={value}" for key, value in sweeper.params.items()]
    swept = {o.get_key_element(): one_by_one(o) for o in parser.parse_overrides([*params, *arguments])}
    if arms:
        swept = {"arm": [f"arm={name}" for name in arms]} | swept
    typed = {o.get_key_element() for o in parser.parse_overrides(arguments)}
    jobs = []
    for settings in itertools.product(*swept.values()):
        chosen = dict(zip(swept, settings, strict=True))
        own = {o.get_key_element(): str(o.input_line) for o in parser.parse_overrides(overrides_of(chosen, arms))}
        overrides = chosen | {key: value for key, value in own.items() if key not in typed}
        jobs.append(Job(list(settings), list(overrides.values())))
    return jobs


def jobs_of(config: DictConfig, arguments: list[str], loader: ConfigLoader) -> list[Job]:
    """The jobs of a sweep: a grid, or the trials of a search, without the values that it chooses."""
    search = config.hydra.sweeper.search
    return [Job(arguments, arguments)] * search.n_trials if search else grid(config.hydra.sweeper, arguments, loader)


def check_files(overrides: Sequence[str], loader: ConfigLoader) -> None:
    """Raises UserError for `tuned=NAME` or `protocol=NAME` without a file: Hydra ignores a missing file."""
    for typed in overrides:
        group, _, name = typed.partition("=")
        if group not in ("tuned", "protocol") or name == "none" or "${" in name:  # an arm's name may hold ${model}
            continue
        above, _, choice = typed.rpartition("/") if "/" in name else (group, "", name)
        known = loader.get_group_options(above.replace("=", "/"), config_name="config")
        if choice not in known and known:
            raise UserError(unknown("choice", choice, known, typed.removesuffix(choice)))
        if choice not in known:
            raise UserError(f"unknown choice {typed}; choose a file of conf/{group}, or {group}=none.")


def overrides_of(chosen: Mapping[str, str], arms: Arms) -> list[str]:
    """The overrides of the arm that a job names, none without one; raises UserError for an unknown arm."""
    if "arm" not in chosen:
        return []
    name = chosen["arm"].removeprefix("arm=")
    if name not in arms:
        if not arms:
            raise UserError(f"unknown arm {name}; arms belong to a study, which sweeps=NAME chooses.")
        raise UserError(unknown("arm", name, arms))
    return arms[name]


def one_by_one(override: Override) -> list[str]:
    """An override that lists several values as one override for each."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise UserError(
            f"{override.input_line} is an interval, which has no grid of values; list values, or choose a search "
            "as sweeps/tuning.yaml does."
        )
    found = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    if not found:
        raise UserError(f"{override.input_line} has no value: a range must hold a number, a glob must match a name.")
    return found


def settings_of(overrides: list[str], arms: Arms) -> list[str]:
    """The overrides of a running job without those of its arm; raises UserError where those were not applied."""
    chosen = {override.split("=")[0]: override for override in overrides}
    own = overrides_of(chosen, arms)
    if not {override.split("=")[0] for override in own} <= set(chosen):
        raise UserError(f"{chosen['arm']} needs a sweep, which may have one run; leave out hydra.mode=RUN.")
    return [override for override in overrides if override not in own]


def job_names(jobs: list[Job]) -> list[str]:
    """A name for each job of a sweep, from the settings in which jobs differ; trials of a search are numbered."""
    shared = set.intersection(*(set(job.settings) for job in jobs))
    names = [job_name([s for s in job.settings if s not in shared or s.startswith(HEADS)]) for job in jobs]
    if len(set(names)) == len(names):
        return names
    return [f"{name} trial {number}" for number, name in enumerate(names, start=1)]


def varied_keys(jobs: list[Job]) -> list[str]:
    """The keys of the settings in which jobs differ, in the order of the settings."""
    shared = set.intersection(*(set(job.settings) for job in jobs))
    settings = (setting for job in jobs for setting in job.settings if setting not in shared)
    return list(dict.fromkeys(setting.split("=")[0] for setting in settings))


def job_name(settings: list[str]) -> str:
    """`grpo seed 1`, and the job's other settings by the last part of their keys, as `lr=0.001`.

    An arm's name takes the place of the algorithm's.
    """
    by_key = dict(setting.lstrip("+~").split("=", 1) for setting in settings if "=" in setting)
    by_key.pop("sweeps", None)
    algorithm = by_key.pop("algorithm", "")
    head = [by_key.pop("arm", algorithm)] + ([f"seed {by_key.pop('seed')}"] if "seed" in by_key else [])
    lasts = [re.split(r"[./]", key)[-1] for key in by_key]
    names = [last if lasts.count(last) == 1 else key for last, key in zip(lasts, by_key, strict=True)]
    pairs = [f"{name}={rounded(value)}" for name, value in zip(names, by_key.values(), strict=True)]
    return " ".join(filter(None, head + pairs))
