"""The command `bakeoff`: one run, or with `sweeps=…` a study of many."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from pathlib import Path

os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here whole, and leave as one sentence
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from bakeoff.config import register
from bakeoff.errors import UserError, fail, refused, sentence
from bakeoff.paths import CONF
from bakeoff.validation import to_config

register()


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def app(cfg: DictConfig) -> float:
    """Runs one job; returns the held-out greedy accuracy, which an optimiser of hyper-parameters reads."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # here, because a launcher's processes begin here
    from bakeoff.arms import arms_of, settings_of, unresolved
    from bakeoff.job import run_job
    from bakeoff.progress import RunProgress, read
    from bakeoff.sweep import check_tuned, parent_run

    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    in_sweep = job.mode is RunMode.MULTIRUN
    choices = {g: c for g, c in job.runtime.choices.items() if c and not g.startswith("hydra") and "@" not in g}
    try:
        config = to_config(cfg)
        overrides = unresolved(job.overrides.task)
        check_tuned(overrides, config)
        settings = settings_of(overrides, arms_of(job.sweeper))
        if config.arm:
            choices["arm"] = config.arm
        parent = parent_run(folder.parent) if in_sweep else None
        return run_job(config, folder, choices, settings, parent, quiet=in_sweep)
    except BaseException as error:
        release(error)
        if in_sweep and read(folder) is None:  # the job failed before it could report
            RunProgress(folder, "", quiet=True).end("failed", sentence(error))
        if in_sweep or not isinstance(error, UserError):
            raise  # a launcher runs the other jobs
        fail(error)


def release(error: BaseException | None) -> None:
    """Frees the models that the frames of a failed job hold: Hydra keeps its exception until the sweep ends."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def resumed(arguments: list[str]) -> list[str]:
    """Replaces `resume=DIR` by the overrides of the run in DIR and its folder; other arguments stay."""
    from bakeoff.arms import unresolved

    folders = [Path(a.removeprefix("resume=")) for a in arguments if a.startswith("resume=")]
    if not folders:
        return arguments
    saved = folders[0] / ".hydra" / "overrides.yaml"
    if not saved.is_file():
        raise UserError(f"resume is '{folders[0]}', which holds no run; it must be the output folder of a run.")
    others = [a for a in arguments if not a.startswith("resume=")]
    return [*unresolved(OmegaConf.load(saved)), "hydra.mode=RUN", f"hydra.run.dir={folders[0]}", *others]


def use_config_dir(arguments: list[str]) -> None:
    """Makes the folder of Hydra's `--config-dir` the user's folder of studies, also in a launcher's processes."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    folder = parser.parse_known_args(arguments)[0].config_dir
    if folder:
        os.environ["BAKEOFF_STUDIES"] = folder


def main() -> None:
    """Runs the command; a user's mistake ends it with one sentence and exit code 2."""
    try:
        with refused():
            sys.argv[1:] = resumed(sys.argv[1:])
            use_config_dir(sys.argv[1:])
            app()
    except UserError as error:
        fail(error)
    except KeyboardInterrupt as error:
        print(
            "bakeoff: interrupted; to continue a run from its last checkpoint, type bakeoff resume=FOLDER; to continue "
            "a sweep, rerun the same command with hydra.sweep.dir=FOLDER.",
            file=sys.stderr,
        )
        raise SystemExit(130) from error


if __name__ == "__main__":
    main()
