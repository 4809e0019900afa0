"""A job that runs in a process which another program starts, perhaps on another machine, and what it returned."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, open_dict

from bakeoff.errors import UserError, not_installed
from bakeoff.progress import has_ended, read


def require(launcher: str, package: str) -> None:
    """Raises UserError with what to install where the package of a launcher is not there."""
    if importlib.util.find_spec(package) is None:
        raise UserError(not_installed(launcher))


@dataclass
class RemoteJob:
    """Runs jobs of a sweep in a process elsewhere, in the same working folder, which both machines share.

    payload       Hydra's state and the function of a job, pickled: it is read when the environment is set
    environment   variables of the environment that the process does not inherit
    on_sigterm    handler of the signal, where it is another than the run's
    """

    folder: Path
    payload: bytes
    environment: dict[str, str]
    on_sigterm: Callable[[int, Any], NoReturn] | None = None

    def __call__(self, overrides: list[str], number: int) -> None:
        """Runs one job; it raises what the job raised."""
        os.environ.update(self.environment)
        os.chdir(self.folder)
        if self.on_sigterm:
            signal.signal(signal.SIGTERM, self.on_sigterm)
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


def task_of(
    launcher: Launcher, environment: dict[str, str], on_sigterm: Callable[[int, Any], NoReturn] | None = None
) -> RemoteJob:
    """The task that runs the jobs of a launcher, which Hydra has set up."""
    state = (launcher.hydra_context, launcher.config, launcher.task_function, Singleton.get_state())  # type: ignore[attr-defined]
    return RemoteJob(Path.cwd(), cloudpickle.dumps(state), environment, on_sigterm)


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
