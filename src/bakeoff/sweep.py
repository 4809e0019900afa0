"""Around a sweep: every job is checked before the first starts, a parent run holds them, and a view shows them."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from bakeoff.arms import Job, check_files, job_names, varied_keys
from bakeoff.config import Config
from bakeoff.errors import KILLED, UserError, redacted, sentence
from bakeoff.files import replace_text
from bakeoff.folder import held, read_record, result_of
from bakeoff.job_folders import placed
from bakeoff.launcher.local import shield_processes
from bakeoff.mlflow_store import SQLITE
from bakeoff.paths import AD_HOC, commit, page_file, study_file, study_folders
from bakeoff.processes import place
from bakeoff.progress import FILE, RunProgress, has_ended, read
from bakeoff.signals import reraising_interrupts, terminate
from bakeoff.tracking import Tracker, start_run
from bakeoff.validation import to_config
from bakeoff.watch import watching

PARENT = "parent_run.json"
SHOWN = 5  # jobs that a message names


@dataclass
class Parent:
    """The sweep of a folder.

    run_id    its MLflow run
    process   id of the process of its launch
    varied    keys in which its jobs differ
    host      name of the machine of its launch
    commands  of all launches in its folder, which may have different jobs
    """

    run_id: str
    process: int
    varied: list[str] = field(default_factory=list)
    host: str = ""
    commands: list[str] = field(default_factory=list)

    def started_this(self) -> bool:
        """Whether the sweep's process started this one, which then ends with it."""
        return self.host == socket.gethostname() and self.process == os.getppid()


def parent_run(folder: Path) -> Parent | None:
    """The sweep whose jobs write below `folder`, none outside of a sweep."""
    try:
        return Parent(**json.loads((folder / PARENT).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def study_of(hydra: DictConfig) -> str:
    """The name of the study: the choice of `sweeps`, empty for none."""
    name = str(hydra.runtime.choices.get("sweeps") or "none")
    return "" if name == "none" else name


def run_sweep(
    config: DictConfig, loader: ConfigLoader, jobs: list[Job], launch: Callable[[list[list[str]]], Any]
) -> Any:
    """Launches the jobs that the sweep's folder lacks below one parent run; `launch` takes the overrides of each.

    Raises UserError for a job that cannot work, and where the folder holds another sweep, before any starts.
    """
    study, folder, console = study_of(config.hydra), Path(config.hydra.sweep.dir), Console()
    if any("sweep.subdir" in override for override in config.hydra.overrides.hydra):
        raise UserError("hydra.sweep.subdir is set, but the jobs of a sweep have numbered folders; leave it out.")
    check_study(study)
    console.print(f"[bold]{study or 'sweep'}[/]: {len(jobs)} jobs, results in {escape(str(folder))}", highlight=False)
    with console.status(f"checking the configurations of {len(jobs)} jobs"):
        configs = composed(loader, config, jobs)
    first = configs[0]
    if elsewhere(config.hydra.launcher):
        for each in configs:
            refuse_file(each.tracking.uri)
    if first.study.question:
        console.print(Text(first.study.question))
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder, 1):
        search = bool(config.hydra.sweeper.search)  # it numbers its trials itself
        folders = [folder / str(n) for n in range(len(jobs))] if search else placed(jobs, configs, folder)
        varied = varied_keys(jobs) + list(config.hydra.sweeper.search.params if search else [])
        tracker = start_parent(study, first, folder, len(jobs), varied)
        missing = [n for n in range(len(jobs)) if search or result_of(folders[n], configs[n]) is None]
        if len(missing) < len(jobs):
            console.print(f"{len(jobs) - len(missing)} of {len(jobs)} jobs are done already", highlight=False)
        for n in missing:
            (folders[n] / FILE).unlink(missing_ok=True)  # the report of an earlier launch
        overrides = {folders[n]: [*jobs[n].overrides, f"hydra.sweep.subdir={folders[n].name}"] for n in missing}
        named = dict(zip(job_names(jobs), folders, strict=True))
        launcher = str(config.hydra.runtime.choices.get("hydra/launcher"))
        with tracker.running(), all_finish(named, tracker, launcher), watching(list(named), folders, console):
            result = launch([]) if search else None
            if not search:
                shield_processes()
                launch_each(overrides, launch, tracker)
        console.print(Text(f"its report: {reporting(study)}"), soft_wrap=True)
        ui = f"mlflow ui --backend-store-uri {redacted(first.tracking.uri)}"
        console.print(Text(f"curves by arm: `{ui}`, then {tracker.charts()}"), soft_wrap=True)
        return result


def launch_each(
    overrides: dict[Path, list[str]], launch: Callable[[list[list[str]]], Sequence[JobReturn]], tracker: Tracker
) -> None:
    """Launches jobs, given by folder. If a process is killed, the jobs that were running are repeated, each alone.

    This shows the job that needs too much memory, and all others finish.
    """
    try:
        returned = launch(list(overrides.values())) if overrides else []
        for folder, job in zip(overrides, returned, strict=True):
            if job.status is JobStatus.FAILED and not has_ended(read(folder)):  # its process died elsewhere
                end_killed(folder, tracker, "failed", sentence(job._return_value))
    except BrokenProcessPool:
        left = [folder for folder in overrides if not has_ended(read(folder))]
        if len(overrides) == 1:
            for folder in left:
                end_killed(folder, tracker, "failed", f"its process {KILLED}")
            return
        alone = [folder for folder in left if read(folder)] or left
        for folder in alone:
            launch_each({folder: overrides[folder]}, launch, tracker)
        launch_each({folder: overrides[folder] for folder in left if folder not in alone}, launch, tracker)


def end_killed(folder: Path, tracker: Tracker, state: str, reason: str = "") -> None:
    """Records the end of a job whose process could not."""
    last, record = read(folder) or {}, read_record(folder)
    RunProgress(folder, last.get("name", ""), quiet=True).end(state, reason)
    if record is not None:
        with suppress(Exception):  # whatever the store is made of: the folder says it too
            tracker.client.set_terminated(record.mlflow_run, state.upper())


def composed(loader: ConfigLoader, config: DictConfig, jobs: list[Job]) -> list[Config]:
    """The checked configuration of every job, composed as a launcher does it, and once for jobs that differ in seed."""
    known: dict[tuple[str, ...], DictConfig] = {}
    configs: dict[tuple[str, ...], Config] = {}
    for job in jobs:  # trials of a search share their overrides
        if tuple(job.overrides) in configs:
            continue
        seeds = [override for override in job.overrides if override.startswith("seed=")]
        rest = tuple(override for override in job.overrides if override not in seeds)
        if rest not in known:
            check_files(rest, loader)
            known[rest] = loader.load_sweep_config(config, list(rest))
            with open_dict(known[rest]):
                del known[rest]["hydra"]
        of_seed = known[rest].copy()
        for seed in seeds:
            OmegaConf.update(of_seed, "seed", seed.removeprefix("seed="))
        checked = configs[tuple(job.overrides)] = to_config(of_seed)
        if checked.processes > 1 or place().size > 1:
            raise UserError(
                f"processes is {max(checked.processes, place().size)}, but a sweep runs each job in one process; leave "
                "processes out, or start the runs one by one."
            )
    return [configs[tuple(job.overrides)] for job in jobs]


def elsewhere(launcher: DictConfig) -> bool:
    """Whether the jobs of a launcher may run on other machines than this one."""
    return not launcher.get("one_machine", True) and launcher.get("address") != "local"


def refuse_file(uri: str) -> None:
    """Raises UserError for a store that is a file, for jobs on several machines: their locks do not hold there."""
    if uri.startswith(SQLITE):
        raise UserError(
            f"tracking.uri is '{uri}', a file, which jobs on several machines cannot write at once; start a server "
            "(mlflow server --backend-store-uri postgresql://USER@HOST/NAME) and set MLFLOW_TRACKING_URI to its "
            "address, or set hydra.launcher.one_machine=true if all jobs run on this machine."
        )


def check_study(study: str) -> None:
    """Raises UserError if the name is a path, or if two studies have it."""
    if Path(study).name != study:
        raise UserError(f"sweeps is '{study}', which is a path; it must be the name of a study, such as methods.")
    if study:  # both raise where the user and the package have one
        study_file("sweeps", f"{study}.yaml")
        page_file(study)


def reporting(study: str) -> str:
    """The command that writes a sweep's report, with the user's folder where that is another than the working one."""
    own, page = study_folders()[0], page_file(study)
    has_page = page is not None and page.parent == own / "pages"
    there = ["--config-dir", str(own)] if own != Path.cwd() and has_page else []
    return shlex.join(["bakeoff-report", study or AD_HOC, *there])


def start_parent(study: str, config: Config, folder: Path, jobs: int, varied: list[str]) -> Tracker:
    """The MLflow run that holds the jobs: a new one, or that of the sweep that the folder holds already."""
    name = study or AD_HOC
    tags = {"study": name, "kind": "sweep", "commit": commit(), "question": config.study.question}
    earlier, launched = parent_run(folder), finishing(folder.resolve())
    commands = list(dict.fromkeys([*(earlier.commands if earlier else []), launched]))
    note = (
        f"**{name}**: {jobs} jobs, the child runs. {config.study.question}\n\n"
        "In the list of runs, the plus beside this run's name shows its jobs, the chart symbol their curves, and "
        "*Group by* → `algorithm` one line per method. Search the charts for `reward/mean`, `eval/`, `kl/`, "
        "`memory/peak_mb`, or `memory/PHASE/ROLE_KIND_mb` for memory by role. "
        f"`bakeoff-report {name}` adds the report to the artifacts of this run."
    )
    resumes, title = earlier.run_id if earlier else None, f"{name} {folder.name}"
    report = partial(Console().print, markup=False)
    tracker = start_run(config.tracking, title, tags, folder, resumes, report, finishing(folder))
    curves = f"[Curves by arm](#{tracker.charts().partition('#')[2]})"
    # a report asks for more seeds by the commands
    tracker.tags({"command": "\n".join(commands), "mlflow.note.content": f"{curves}. {note}"})
    parent = Parent(tracker.run_id, os.getpid(), varied, socket.gethostname(), commands)
    replace_text(folder / PARENT, json.dumps(asdict(parent)))
    return tracker


@contextmanager
def all_finish(folders: dict[str, Path], tracker: Tracker, launcher: str) -> Iterator[None]:
    """Raises UserError that names the jobs which did not finish, why, and the command that finishes them.

    SIGTERM ends a sweep as an interrupt does; both get a note with that command.
    """
    command, failure = finishing(next(iter(folders.values())).parent), None
    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        with reraising_interrupts():
            yield
    except Exception as error:  # of a job, which a sweeper may raise again
        failure = error
    except BaseException as error:
        for folder in folders.values():
            if read(folder) and not has_ended(read(folder)):
                end_killed(folder, tracker, "killed")
        error.add_note(f"To finish the sweep, type: {command}")
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
    reports = {name: read(folder) or {"state": "not started"} for name, folder in folders.items()}
    if failure is not None and all(report["state"] == "not started" for report in reports.values()):
        raise UserError(
            f"hydra/launcher is {launcher}, which started no job: {sentence(failure).rstrip('.')}; to run them on this "
            f"machine, type: {command} hydra/launcher=joblib"
        ) from failure
    unfinished = [
        f"{report.get('name') or name} ({': '.join(filter(None, (report['state'], report.get('reason'))))})"
        for name, report in reports.items()
        if report["state"] != "done"
    ]
    if unfinished:
        more = [f"and {len(unfinished) - SHOWN} more"] if len(unfinished) > SHOWN else []
        cause = f"; the sweep stopped with {type(failure).__name__}: {failure}" if failure is not None else ""
        raise UserError(
            f"{len(unfinished)} of {len(reports)} jobs did not finish: {', '.join(unfinished[:SHOWN] + more)}{cause}; "
            f"to finish them, type: {command}"
        ) from failure
    if failure is not None:
        raise failure


def finishing(folder: Path) -> str:
    """The command that was typed, with the sweep's folder."""
    words = [word for word in sys.argv[1:] if not word.startswith("hydra.sweep.dir=")]
    value = str(folder) if re.fullmatch(r"[\w./+@%-]+", str(folder)) else f"'{folder}'"  # as Hydra reads it
    return shlex.join(["bakeoff", *words, f"hydra.sweep.dir={value}"])
