"""What `bakeoff` runs: one run, or with `sweeps=…` a study of many."""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
import warnings
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from bakeoff import processes
from bakeoff.arguments import of_hydra
from bakeoff.config import register
from bakeoff.early import check_overrides
from bakeoff.errors import UserError, answering, fail, refused, sentence
from bakeoff.paths import CONF, refuse_shadowed
from bakeoff.validation import to_config

register()


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def app(cfg: DictConfig) -> float:
    """Runs one job; returns its result, which a search reads: after training the held-out greedy accuracy."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # here, because a launcher's processes begin here
    from bakeoff.arms import arms_of, check_files, settings_of, unresolved
    from bakeoff.elastic import launched, starts_processes
    from bakeoff.job import run_job
    from bakeoff.progress import RunProgress, read
    from bakeoff.signals import ends_with
    from bakeoff.sweep import parent_run, refuse_file

    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    in_sweep = job.mode is RunMode.MULTIRUN
    choices = {g: c for g, c in job.runtime.choices.items() if c and not g.startswith("hydra") and "@" not in g}
    parent = parent_run(folder.parent) if in_sweep else None
    started = parent is not None and parent.started_this()
    if parent and parent.process != os.getpid():
        with suppress(ValueError):  # outside of a main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the sweep's own ends the jobs
    try:
        config = to_config(cfg)
        overrides = unresolved(job.overrides.task)
        if not in_sweep:  # whose jobs are checked before the first begins
            check_files(overrides, GlobalHydra.instance().config_loader())
        if parent and parent.host != socket.gethostname():
            refuse_file(config.tracking.uri)
        settings = settings_of(overrides, arms_of(job.sweeper))
        if config.arm:
            choices["arm"] = config.arm
        if starts_processes(config):
            own = [each for each in job.overrides.hydra if not each.startswith("hydra.run.dir=")]
            return launched(config, folder, [*job.overrides.task, *own, f"hydra.run.dir='{folder}'"])
        launcher = parent.process if parent and started else processes.launcher()
        with ends_with(launcher), refused():
            run_id, varied = (parent.run_id, parent.varied) if parent else (None, None)
            return run_job(config, folder, choices, settings, run_id, quiet=in_sweep, varied=varied)
    except BaseException as error:
        release(error)
        if in_sweep and read(folder) is None:  # the job failed before it could report
            RunProgress(folder, "", quiet=True).end("failed", sentence(error))
        if isinstance(error, SystemExit) and started:
            raise UserError("ended by a signal") from error  # to this process alone: the launcher runs the other jobs
        if not in_sweep and not any(folder.iterdir()) and not any("run.dir" in each for each in job.overrides.hydra):
            folder.rmdir()  # Hydra made it for a run that was refused
            with suppress(ValueError, OSError):  # outside of the working folder, or with other runs
                for above in list(folder.relative_to(Path.cwd()).parents)[:-1]:
                    above.rmdir()
        if in_sweep or not isinstance(error, UserError):
            raise  # a launcher runs the other jobs
        fail(error)


def release(error: BaseException | None) -> None:
    """Frees the models that the frames of a failed job hold: Hydra keeps its exception until the sweep ends."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def resumed(arguments: list[str]) -> Path | None:
    """The folder of `resume=DIR`, none without it; raises UserError for an option with it, and for a second folder."""
    folders = [argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")]
    options = [argument for argument in arguments if argument.startswith("-")]
    if folders and options:
        raise UserError(f"{options[0]} cannot be combined with resume={folders[0]}, which takes only overrides.")
    if len(folders) > 1 or "" in folders:
        raise UserError(f"resume is {' and '.join(folders)!r}; it must be the output folder of one run.")
    return Path(folders[0]) if folders else None


def check(arguments: list[str]) -> None:
    """Raises UserError for what can be refused before the libraries of a run are here; see early.py."""
    if resumed(arguments) is None:
        given, _ = of_hydra(arguments)
        refuse_shadowed()
        check_overrides(given.overrides, given.config_dir, given.multirun)


def command(arguments: list[str]) -> None:
    """Runs what the arguments say; a user's mistake ends it with one sentence and exit code 2.

    Of the processes of one run the first does so, and the others follow it.
    """
    with answering("bakeoff"):
        if processes.place().rank:
            from bakeoff.job import follow

            return follow()
        processes.join()
        folder = resumed(arguments)
        if folder is None:
            _, sys.argv[1:] = of_hydra(arguments)
            refuse_shadowed()
            app()
        else:
            from bakeoff.resume import resume

            resume(folder, [argument for argument in arguments if not argument.startswith("resume=")])
        processes.leave()
