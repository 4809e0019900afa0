"""Where the jobs of a sweep run beside this machine's processors: on its GPUs, in Slurm's queue, on Ray's workers."""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NoReturn

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from joblib import register_parallel_backend
from joblib._parallel_backends import LokyBackend
from joblib.externals.loky.backend import resource_tracker as loky_tracker
from omegaconf import DictConfig, open_dict

from bakeoff.device import claim_gpu
from bakeoff.errors import UserError, not_installed
from bakeoff.files import replace_text
from bakeoff.progress import RunProgress, has_ended, read
from bakeoff.signals import shielding

SUBMITTED = ".submitit"  # the folder of a sweep that holds what submitit writes, and the ids of its jobs in the queue
INHERITED = ("BAKEOFF_", "MLFLOW_", "HF_", "HYDRA_")  # variables of the environment that Ray's workers get
RAY_TOKEN = Path.home() / ".ray" / "auth_token"
POLL = 10.0  # seconds between two looks at Slurm's queue
ENDING = 60.0  # seconds for which an interrupted sweep waits until its jobs in the queue have ended
PREEMPTED = 600.0  # seconds for which a job that Slurm preempts waits for its end: a partition's grace


def require(launcher: str, package: str) -> None:
    """Raises UserError with what to install where the package of a launcher is not there."""
    if importlib.util.find_spec(package) is None:
        raise UserError(not_installed(launcher))


@dataclass
class Task:
    """Runs jobs of a sweep in a process elsewhere, in the same working folder, which both machines share.

    payload       Hydra's state and the function of a job, pickled: it is read when the environment is set
    environment   variables of the environment that the process does not inherit
    """

    folder: Path
    payload: bytes
    environment: dict[str, str]
    in_queue: bool = False

    def __call__(self, overrides: list[str], number: int) -> None:
        """Runs one job; it raises what the job raised."""
        os.environ.update(self.environment)
        os.chdir(self.folder)
        if self.in_queue:
            signal.signal(signal.SIGTERM, wait_for_end)
        context, config, function, state = cloudpickle.loads(self.payload)
        setup_globals()
        Singleton.set_state(state)
        job = context.config_loader.load_sweep_config(config, overrides)
        with open_dict(job):
            job.hydra.job.id, job.hydra.job.num = str(number), number
        HydraConfig.instance().set_config(job)
        ended = run_job(function, job, "hydra.sweep.dir", "hydra.sweep.subdir", context)
        ended.return_value  # noqa: B018  it raises

    def checkpoint(self, *arguments: Any) -> Any:
        """What submitit queues again when the job comes near its time limit: the same job, which resumes."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, *arguments)


def task_of(launcher: Launcher, environment: dict[str, str], in_queue: bool) -> Task:
    """The task that runs the jobs of a launcher, which Hydra has set up."""
    state = (launcher.hydra_context, launcher.config, launcher.task_function, Singleton.get_state())  # type: ignore[attr-defined]
    return Task(Path.cwd(), cloudpickle.dumps(state), environment, in_queue)


def folders_of(config: DictConfig, jobs: Sequence[Sequence[str]], first: int) -> list[Path]:
    """The folder of each job, of which some name theirs; the others are numbered from `first`."""
    key, sweep = "hydra.sweep.subdir=", Path(config.hydra.sweep.dir).resolve()
    named = [[each.removeprefix(key) for each in job if each.startswith(key)] for job in jobs]
    return [sweep / (name[-1] if name else str(first + n)) for n, name in enumerate(named)]


def returned(folder: Path, lost: str) -> JobReturn:
    """The result of a folder's job, by its report; `lost` is the reason where no end is reported."""
    report = read(folder) or {}
    if report.get("state") == "done":
        return JobReturn(status=JobStatus.COMPLETED, _return_value=report["result"])
    reason = report.get("reason") if has_ended(report or None) else lost
    return JobReturn(status=JobStatus.FAILED, _return_value=UserError(reason or "it was killed"))


# --- processes of this machine ---


class Shielded(LokyBackend):  # type: ignore[misc]  # its package has no types
    """joblib's processes, which never see Ctrl-C: the process that starts them ends them."""

    def submit(self, *arguments: Any, **options: Any) -> Any:
        """Queues a call, for which it starts a process where one is missing."""
        for tracker in (resource_tracker, loky_tracker):
            tracker.ensure_running()  # which unblocks the signal where it starts
        with shielding():
            return super().submit(*arguments, **options)


def shield_processes() -> None:
    """Makes joblib, and Hydra's launcher with it, start its processes shielded."""
    register_parallel_backend("loky", Shielded)


# --- the GPUs of this machine ---


def on_gpu(gpus: list[str], function: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    """Runs a job in a process that has a GPU for itself; the job's report says where it waits for one."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    claim_gpu(gpus, lambda message: RunProgress(folder, "", quiet=True).report(message))
    return function(config)


# --- Slurm ---


def in_slurm(launcher: Launcher, jobs: Sequence[Sequence[str]], first: int, **options: Any) -> list[JobReturn]:
    """Queues the jobs, and waits for their ends; a job that an earlier launch has queued is waited for alone.

    An interrupt cancels the jobs. The queue keeps them where this process dies.
    """
    import submitit

    config: DictConfig = launcher.config  # type: ignore[attr-defined]
    sweep = Path(config.hydra.sweep.dir).resolve()
    place = sweep / SUBMITTED
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    name = re.sub(r"[^\w.-]", "_", f"bakeoff-{sweep.name}")
    folders = folders_of(config, jobs, first)
    known = queued_before(place)
    there = queue(name) or {} if known else {}
    queued: dict[Path, submitit.SlurmJob[None]] = {}
    for folder, job in zip(folders, jobs, strict=True):
        identity, overrides = known.get(folder.name, ("", []))
        if identity in there and overrides == list(job):
            queued[folder] = submitit.SlurmJob(place / "%j", identity)
    new = [(folder, list(job), first + n) for n, (folder, job) in enumerate(zip(folders, jobs, strict=True))]
    new = [each for each in new if each[0] not in queued]
    if new:
        executor = submitit.SlurmExecutor(place / "%j", max_num_timeout=options.pop("max_num_timeout"))
        executor.update_parameters(job_name=name, **sbatch(options))
        task = task_of(launcher, {}, in_queue=True)
        submitted = executor.map_array(task, [job for _, job, _ in new], [number for _, _, number in new])
        queued |= dict(zip([folder for folder, _, _ in new], submitted, strict=True))
        ids = {folder.name: (queued[folder].job_id, job) for folder, job, _ in new}
        replace_text(place / "jobs.json", json.dumps(known | ids))
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
    """The id in the queue and the overrides of each job that earlier launches of a sweep queued, by its folder."""
    try:
        return {
            name: (identity, job) for name, (identity, job) in json.loads((place / "jobs.json").read_text()).items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


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


# --- Ray ---


def on_ray(
    launcher: Launcher,
    jobs: Sequence[Sequence[str]],
    first: int,
    address: str,
    gpus: float | None,
    cpus: float,
    memory_gb: float,
    resources: dict[str, float],
    repeats: int,
) -> list[JobReturn]:
    """Runs the jobs on a Ray cluster, of which each worker gets the GPUs that Ray hands out; waits for their ends.

    Ray runs a job again, from its last checkpoint, where its worker or its machine dies.
    """
    if address != "local" and RAY_TOKEN.is_file():  # with which `ray start` then protects a cluster
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    environment = {key: value for key, value in os.environ.items() if key.startswith(INHERITED)}
    folders, lost = folders_of(launcher.config, jobs, first), {}  # type: ignore[attr-defined]
    alone = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == "local" else {}
    ray.init(address=address, log_to_driver=False, logging_level="error", **alone)
    try:
        shared = ray.put(task_of(launcher, environment, in_queue=False))
        gpus = min(1, ray.cluster_resources().get("GPU", 0)) if gpus is None else gpus
        limits = {"num_cpus": cpus, "num_gpus": gpus, "memory": memory_gb * 1e9, "resources": resources}
        run = ray.remote(**limits, max_retries=repeats, max_calls=1)(run_task)
        left = {run.remote(shared, list(job), first + n): folders[n] for n, job in enumerate(jobs)}
        while left:
            for ended in ray.wait(list(left))[0]:
                folder = left.pop(ended)
                try:
                    ray.get(ended)
                except Exception as error:  # of the job, whose report says it, or of Ray
                    lost[folder] = " ".join(str(error).split())[:300]
    finally:
        ray.shutdown()
    return [returned(folder, lost.get(folder, "")) for folder in folders]


def run_task(task: Task, overrides: list[str], number: int) -> None:
    """Runs one job of a task, which Ray reads from its store."""
    task(overrides, number)
