"""Jobs in Slurm's queue, by submitit."""

from __future__ import annotations

import getpass
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from bakeoff.errors import UserError, first_line
from bakeoff.files import replace_text
from bakeoff.launcher.elsewhere import folders_of, returned, task_of

SUBMITTED = ".submitit"  # the folder of a sweep that holds what submitit writes
QUEUED = "jobs.json"  # the list of its jobs in the queue, in that folder
POLL = 10.0  # seconds between two looks at Slurm's queue
ENDING = 60.0  # seconds for which an interrupted sweep waits until its jobs in the queue have ended
PREEMPTED = 600.0  # seconds for which a job that Slurm preempts waits for its end: a partition's grace


def in_slurm(launcher: Launcher, jobs: Sequence[Sequence[str]], first: int, **options: Any) -> list[JobReturn]:
    """Queues the jobs and waits for their ends; a job still queued by an earlier launch is only waited for.

    An interrupt cancels the jobs. The queue keeps them where this process dies. Raises UserError where Slurm does not
    say which of them are still queued.
    """
    import submitit

    config: DictConfig = launcher.config  # type: ignore[attr-defined]
    sweep = Path(config.hydra.sweep.dir).resolve()
    place = sweep / SUBMITTED
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    name = re.sub(r"[^\w.-]", "_", f"bakeoff-{sweep.name}")
    folders = folders_of(config, jobs, first)
    known = queued_before(place)
    still = still_queued(known, name)
    queued: dict[Path, submitit.SlurmJob[None]] = {
        folder: submitit.SlurmJob(place / "%j", still[folder.name][0])
        for folder, job in zip(folders, jobs, strict=True)
        if folder.name in still and still[folder.name][1] == list(job)
    }
    new = [(folder, list(job), first + n) for n, (folder, job) in enumerate(zip(folders, jobs, strict=True))]
    new = [each for each in new if each[0] not in queued]
    if new:
        executor = submitit.SlurmExecutor(place / "%j", max_num_timeout=options.pop("max_num_timeout"))
        executor.update_parameters(job_name=name, **sbatch(options))
        task = task_of(launcher, {}, wait_for_end)
        submitted = executor.map_array(task, [job for _, job, _ in new], [number for _, _, number in new])
        queued |= dict(zip([folder for folder, _, _ in new], submitted, strict=True))
        ids = {folder.name: (queued[folder].job_id, job) for folder, job, _ in new}
        replace_text(place / QUEUED, json.dumps(known | ids))
    with cancelled([job.job_id for job in queued.values()], name):
        wait({job.job_id: job.paths.result_pickle for job in queued.values()}, name)
    log = "its process ended without a result, which Slurm's log may explain: {}"
    return [returned(folder, log.format(queued[folder].paths.stderr)) for folder in folders]


def sbatch(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are set, by the names that submitit has for those of `sbatch`."""
    renamed = {"gpus": "gpus_per_node", "cpus": "cpus_per_task", "minutes": "time", "save_s": "signal_delay_s"}
    given = {renamed.get(key, key): value for key, value in options.items() if value is not None}
    if "memory_gb" in given:
        given["mem"] = f"{given.pop('memory_gb')}GB"
    if "at_once" in given:
        given["array_parallelism"] = given.pop("at_once")
    return given


def queued_before(place: Path) -> dict[str, tuple[str, list[str]]]:
    """The id in the queue and the overrides of each job that earlier launches of a sweep queued, by its folder.

    Raises UserError for a list that cannot be read: its jobs may be in the queue, and would run twice.
    """
    path = place / QUEUED
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"'{path}', the list of queued jobs, cannot be read ({first_line(error)}); cancel the jobs of this sweep "
            "(squeue, scancel), then delete it and type the command again."
        ) from error


def still_queued(known: dict[str, tuple[str, list[str]]], name: str) -> dict[str, tuple[str, list[str]]]:
    """Those of the jobs of earlier launches that are in the queue; raises UserError where Slurm does not answer.

    A job that is in the queue without our knowledge would run twice.
    """
    there = queue(name) if known else {}
    if there is None:
        raise UserError("hydra/launcher is slurm, whose queue does not answer (squeue); type the command again later.")
    return {folder: (identity, job) for folder, (identity, job) in known.items() if identity in there}


def queue(name: str) -> dict[str, str] | None:
    """The state of each job in Slurm's queue that has this name, by its id; none where Slurm does not answer."""
    command = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--name", name, "--format", "%i %T"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return None
    return dict(line.split() for line in ran.stdout.splitlines()) if ran.returncode == 0 else None


def wait(results: dict[str, Path], name: str) -> None:
    """Waits until each job, by its id, has written its result, or until two looks have not found it in the queue."""
    missed: dict[str, int] = {}
    looked = time.monotonic()
    while left := [job for job, result in results.items() if not result.exists() and missed.get(job, 0) < 2]:
        time.sleep(1)
        if time.monotonic() - looked > POLL and (there := queue(name)) is not None:
            looked = time.monotonic()
            missed = {job: 0 if job in there else missed.get(job, 0) + 1 for job in {*left, *missed}}


@contextmanager
def cancelled(jobs: list[str], name: str) -> Iterator[None]:
    """Cancels the jobs in Slurm's queue if this process is interrupted, and waits until they have saved their state."""
    try:
        yield
    except BaseException:
        subprocess.run(["scancel", *jobs], capture_output=True)
        over = time.monotonic() + ENDING
        while time.monotonic() < over and set(queue(name) or ()) & set(jobs):
            time.sleep(1)
        raise


def wait_for_end(number: int, frame: Any) -> NoReturn:
    """Handles SIGTERM of a job in Slurm's queue, whose state is saved: it waits until Slurm ends it.

    A job that Slurm preempts is queued again where Slurm ends it, but not where it ends itself before.
    """
    command = ["squeue", "--noheader", "--job", os.environ.get("SLURM_JOB_ID", ""), "--format", "%T"]
    over = time.monotonic() + PREEMPTED
    while time.monotonic() < over:
        if subprocess.run(command, capture_output=True, text=True).stdout.strip() != "RUNNING":
            break
        time.sleep(2)
    raise SystemExit(128 + number)
