"""Around a sweep: every job is checked before the first starts, a parent run holds them, and a view shows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, open_dict
from rich.console import Console

from bakeoff.arms import Job, job_names
from bakeoff.config import Config
from bakeoff.errors import UserError
from bakeoff.paths import page_file, study_file, study_folders
from bakeoff.progress import read, watching
from bakeoff.tracking import Tracker, commit, start_run
from bakeoff.validation import to_config

PARENT = "parent_run.json"


def parent_run(folder: Path) -> str | None:
    """The MLflow run of the sweep whose jobs write below `folder`, none outside of a sweep."""
    try:
        return str(json.loads((folder / PARENT).read_text())["run_id"])
    except OSError:
        return None


def study_of(hydra: DictConfig) -> str:
    """The name of the study: the choice of `sweeps`, empty for none."""
    name = str(hydra.runtime.choices.get("sweeps") or "none")
    return "" if name == "none" else name


def run_sweep(config: DictConfig, loader: ConfigLoader, jobs: list[Job], launch: Callable[[], Any]) -> Any:
    """Launches the jobs below one parent run; raises UserError for one that cannot work, before any starts."""
    study, folder, console = study_of(config.hydra), Path(config.hydra.sweep.dir), Console()
    different = list(dict.fromkeys(tuple(job.overrides) for job in jobs))  # trials of a search share theirs
    first, *_ = [composed(loader, config, list(overrides)) for overrides in different]
    check_study(study)
    folder.mkdir(parents=True, exist_ok=True)
    tracker = start_parent(study, first, folder, len(jobs))
    console.print(f"[bold]{study or 'sweep'}[/]: {len(jobs)} jobs, results in {folder}", highlight=False)
    if first.study.question:
        console.print(first.study.question, highlight=False)
    folders = {name: folder / str(number) for number, name in enumerate(job_names(jobs))}
    with tracker.running(), all_finish(folders), watching(list(folders), list(folders.values()), console):
        return launch()


def composed(loader: ConfigLoader, config: DictConfig, overrides: list[str]) -> Config:
    """The checked configuration of a job, composed as a launcher does it."""
    job = loader.load_sweep_config(config, overrides)
    with open_dict(job):
        del job["hydra"]
    checked = to_config(job)
    check_tuned(overrides, checked)
    return checked


def check_tuned(overrides: list[str], config: Config) -> None:
    """Raises UserError for `tuned=NAME` without a file: the group is optional, so Hydra would go on without it."""
    name = next((each.removeprefix("tuned=") for each in overrides if each.startswith("tuned=")), "none")
    if name not in ("none", config.tuned.name) and "${" not in name:  # an arm's name may hold ${model}
        raise UserError(f"unknown choice tuned={name}; choose a file of conf/tuned, or tuned=none for the defaults.")


def check_study(study: str) -> None:
    """Raises UserError if two studies have this name, or if no code makes the page of this study."""
    if not study:
        return
    study_file("sweeps", f"{study}.yaml")  # raises where the user and the package both have one
    if page_file(study) is None:
        raise UserError(
            f"the study '{study}' has no page; write {study_folders()[0] / 'pages' / f'{study}.py'}, as "
            "docs/studies.md shows."
        )


def start_parent(study: str, config: Config, folder: Path, jobs: int) -> Tracker:
    """The MLflow run that holds the jobs: a new one, or that of the sweep that the folder holds already."""
    name = study or "sweep"
    tags = {"study": name, "kind": "sweep", "commit": commit(), "question": config.study.question}
    tags["mlflow.note.content"] = (
        f"**{name}**: {jobs} jobs, the child runs. {config.study.question}\n\n"
        "In the list of runs, the plus beside this run's name shows its jobs, the chart symbol their curves, and "
        "*Group by* → `algorithm` one line per method. Search the charts for `reward/mean`, `eval/`, `kl/`, "
        "`memory/peak_mb`, or `memory/PHASE/ROLE_KIND_mb` for memory by role. "
        f"`bakeoff-report {name}` adds the report to the artifacts of this run."
    )
    tracker = start_run(config.tracking, f"{name} {folder.name}", tags, parent_run(folder))
    (folder / PARENT).write_text(json.dumps({"run_id": tracker.run_id}))
    return tracker


@contextmanager
def all_finish(folders: dict[str, Path]) -> Iterator[None]:
    """Raises UserError that names the jobs which did not finish, why, and the command that finishes them."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # of a job, which a sweeper may raise again
        failure = error
    reports = {name: read(folder) or {"state": "not started"} for name, folder in folders.items()}
    unfinished = [
        f"{name} ({report['state']}{': ' if report.get('reason') else ''}{report.get('reason', '')})"
        for name, report in reports.items()
        if report["state"] != "done"
    ]
    if unfinished:
        sweep = next(iter(folders.values())).parent
        cause = f"; the sweep stopped with {type(failure).__name__}: {failure}" if failure is not None else ""
        raise UserError(
            f"{len(unfinished)} of {len(reports)} jobs did not finish: {', '.join(unfinished)}{cause}; to finish them, "
            f"rerun the same command with hydra.sweep.dir={sweep}."
        ) from failure
    if failure is not None:
        raise failure
