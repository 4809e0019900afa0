"""What `bakeoff` runs: one run, or with `sweeps=…` a study of many."""

from __future__ import annotations

import argparse
import os
import signal
import traceback
import warnings
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from bakeoff.config import register
from bakeoff.errors import UserError, fail, refused, sentence
from bakeoff.paths import CONF, refuse_shadowed, use_folder
from bakeoff.validation import to_config

register()


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def app(cfg: DictConfig) -> float:
    """Runs one job; returns the held-out greedy accuracy, which an optimiser of hyper-parameters reads."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # here, because a launcher's processes begin here
    from bakeoff.arms import arms_of, settings_of, unresolved
    from bakeoff.job import ends_with, run_job
    from bakeoff.progress import RunProgress, read
    from bakeoff.sweep import check_tuned, parent_run

    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    in_sweep = job.mode is RunMode.MULTIRUN
    choices = {g: c for g, c in job.runtime.choices.items() if c and not g.startswith("hydra") and "@" not in g}
    parent = parent_run(folder.parent) if in_sweep else None
    if parent and parent.process != os.getpid():
        with suppress(ValueError):  # outside of a main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the sweep's own ends the jobs
    try:
        config = to_config(cfg)
        overrides = unresolved(job.overrides.task)
        check_tuned(overrides, config)
        settings = settings_of(overrides, arms_of(job.sweeper))
        if config.arm:
            choices["arm"] = config.arm
        with ends_with(parent.process if parent else 0), refused():
            run_id, varied = (parent.run_id, parent.varied) if parent else (None, None)
            return run_job(config, folder, choices, settings, run_id, quiet=in_sweep, varied=varied)
    except BaseException as error:
        release(error)
        if in_sweep and read(folder) is None:  # the job failed before it could report
            RunProgress(folder, "", quiet=True).end("failed", sentence(error))
        if isinstance(error, SystemExit) and parent and parent.process != os.getpid():
            raise UserError("ended by a signal") from error  # to this process alone: the launcher runs the other jobs
        if not in_sweep and not any(folder.iterdir()) and not any("run.dir" in each for each in job.overrides.hydra):
            folder.rmdir()  # Hydra made it for a run that was refused
        if in_sweep or not isinstance(error, UserError):
            raise  # a launcher runs the other jobs
        fail(error)


def release(error: BaseException | None) -> None:
    """Frees the models that the frames of a failed job hold: Hydra keeps its exception until the sweep ends."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def resumed(arguments: list[str]) -> Path | None:
    """The folder of `resume=DIR`, none without it; raises UserError for other arguments than overrides beside it."""
    folders = [argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")]
    options = [argument for argument in arguments if argument.startswith("-")]
    if folders and options:
        raise UserError(f"{options[0]} does not go with resume={folders[0]}, which takes overrides alone.")
    if len(folders) > 1 or "" in folders:
        raise UserError(f"resume is {' and '.join(folders)!r}; it must be the output folder of one run.")
    return Path(folders[0]) if folders else None


def use_config_dir(arguments: list[str]) -> None:
    """Makes the folder of Hydra's `--config-dir` the user's folder of studies, also in a launcher's processes."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    use_folder(parser.parse_known_args(arguments)[0].config_dir)


def command(arguments: list[str]) -> None:
    """Runs what the arguments say; a user's mistake ends it with one sentence and exit code 2."""
    try:
        with refused():
            folder = resumed(arguments)
            if folder is None:
                use_config_dir(arguments)
                refuse_shadowed()
                app()
            else:
                from bakeoff.resume import resume

                resume(folder, [argument for argument in arguments if not argument.startswith("resume=")])
    except UserError as error:
        fail(error)
