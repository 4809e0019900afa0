"""Around a sweep: every job is checked before the first starts, a parent run holds them, and a view shows them."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from bakeoff.config import Config
from bakeoff.errors import UserError, fail
from bakeoff.progress import read, watching
from bakeoff.tracking import commit, start_run
from bakeoff.validation import to_config

PARENT = "parent_run.json"


def jobs(cfg: DictConfig) -> Iterator[list[str]]:
    """The overrides of each job that Hydra's basic sweeper will run; of an optimiser's trials, what they share."""
    trials = cfg.hydra.sweeper.get("n_trials")
    params = cfg.hydra.sweeper.params or {}
    if trials:
        yield from [list(cfg.hydra.overrides.task)] * trials
        return
    arguments = [f"{key}={value}" for key, value in params.items()] + list(cfg.hydra.overrides.task)
    parsed = OverridesParser.create().parse_overrides(arguments)
    for batch in BasicSweeper.split_arguments(parsed, None):
        yield from batch


def parent_run(folder: Path) -> str | None:
    """The MLflow run of the sweep whose jobs write below `folder`, none outside of a sweep."""
    try:
        return str(json.loads((folder / PARENT).read_text())["run_id"])
    except OSError:
        return None


def job_name(overrides: list[str]) -> str:
    """`grpo seed 1`, and whatever else the job sets; an arm stands for its algorithm."""
    values = dict(override.lstrip("+~").split("=", 1) for override in overrides if "=" in override)
    values.pop("sweeps", None)
    algorithm = values.pop("algorithm", "")
    head = [values.pop("arm", algorithm)] + ([f"seed {values.pop('seed')}"] if "seed" in values else [])
    return " ".join(filter(None, head + [f"{key}={value}" for key, value in values.items()]))


OPEN = ExitStack()  # what the sweep of this process has to close; the command closes it, whatever happened


class Sweep(Callback):
    """Hydra's hook before a multirun. Hydra swallows a hook's exceptions, so errors leave by SystemExit."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        console = Console()
        try:
            overrides = list(jobs(config))
            configs = [to_config(hydra.compose("config", overrides=job)) for job in overrides]
            folder = Path(config.hydra.sweep.dir)
            folder.mkdir(parents=True, exist_ok=True)
            start(configs[0], folder, overrides, console)
        except (UserError, HydraException, OmegaConfBaseException) as error:
            fail(error)
        except Exception as error:
            traceback.print_exc()
            raise SystemExit(1) from error


def start(config: Config, folder: Path, overrides: list[list[str]], console: Console) -> None:
    """Starts the parent run, or goes on with it, and the view of the jobs; `OPEN` closes both."""
    study = config.study.name or "sweep"
    tags = {"study": study, "kind": "sweep", "commit": commit(), "question": config.study.question}
    tags["notebook"] = config.study.notebook
    tags["mlflow.note.content"] = (
        f"**{study}**: {len(overrides)} jobs, the child runs. {config.study.question}\n\n"
        "In the list of runs, the plus beside this run's name shows its jobs, the chart symbol their curves, and "
        "*Group by* → `algorithm` one line a method. Search the charts for `reward/mean`, `eval/`, `kl/`, "
        "`memory/peak_mb`, or `memory/PHASE/ROLE_KIND_mb` for memory by role. The report is an artifact of this run, "
        f"once `bakeoff-report {study}` has made it."
    )
    tracker = start_run(config.tracking, f"{study} {folder.name}", tags, parent_run(folder))
    (folder / PARENT).write_text(json.dumps({"run_id": tracker.run_id}))
    console.print(f"[bold]{study}[/]: {len(overrides)} jobs, results in {folder}", highlight=False)
    if config.study.question:
        console.print(config.study.question, highlight=False)
    names = [job_name(job) for job in overrides]
    if len(set(names)) < len(names):  # trials: their values are not known yet
        names = [f"{name} trial {number}" for number, name in enumerate(names, start=1)]
    folders = [folder / str(number) for number in range(len(overrides))]
    OPEN.enter_context(tracker.running())
    OPEN.callback(tell_unfinished, dict(zip(names, folders, strict=True)))
    OPEN.enter_context(watching(names, folders, console))


def tell_unfinished(folders: dict[str, Path]) -> None:
    """Raises UserError that names the jobs which did not finish, why, and how to go on with them."""
    reports = {name: read(folder) or {"state": "not started"} for name, folder in folders.items()}
    unfinished = [
        f"{name} ({report['state']}{': ' if report.get('reason') else ''}{report.get('reason', '')})"
        for name, report in reports.items()
        if report["state"] != "done"
    ]
    if unfinished:
        sweep = next(iter(folders.values())).parent
        raise UserError(
            f"{len(unfinished)} of {len(reports)} jobs did not finish: {', '.join(unfinished)}; the same command with "
            f"hydra.sweep.dir={sweep} goes on with them."
        )
