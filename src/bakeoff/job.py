"""One job: it sets up or resumes a run in its folder, tracks it, handles signals and errors, and closes it."""

from __future__ import annotations

import json
import os
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bakeoff import processes
from bakeoff.algorithm.critic import OwnStep
from bakeoff.arms import HEADS, job_name
from bakeoff.config import Config, Mode
from bakeoff.device import HOST, device_name
from bakeoff.errors import UserError, redacted
from bakeoff.files import replace_text
from bakeoff.folder import (
    CONFIG,
    RECORD,
    Record,
    described,
    differences,
    held,
    longer,
    may_change,
    read_config,
    read_record,
    result_of,
    resume_command,
    write_record,
)
from bakeoff.identity import by_content, config_id, digest, flatten, plain, task_id, training_id
from bakeoff.learner.checkpoint import load_checkpoint, newest_whole, read_run
from bakeoff.learner.learner import method_of
from bakeoff.measure.phase import Phases
from bakeoff.metrics import named, pair_metrics, peak_metrics, predicted_metrics
from bakeoff.mlflow_store import defines_arm
from bakeoff.modes import log_prediction, measure_quality
from bakeoff.outbox import LOG, read_entries
from bakeoff.outcome import explained
from bakeoff.paths import ROOT, commit
from bakeoff.predict import predict
from bakeoff.progress import RunProgress
from bakeoff.run import Run, Silent, train
from bakeoff.signals import ends_with, reraising_interrupts, termination
from bakeoff.start import prepare, start
from bakeoff.tracking import Tracker, send_unsent, start_run

CONFIGURATION = {"artifact": [str(CONFIG), "config"]}  # the entry of a run's log that ends its configuration
WAIT = 20.0  # seconds that a job of a sweep waits for a process of an earlier launch, which is about to end
LONGEST_NAME = 48  # characters of a run's name, which stands in a column of the MLflow UI


def run_job(
    config: Config,
    folder: Path,
    choices: dict[str, str],
    settings: list[str],
    parent: str | None,
    quiet: bool,
    changes: dict[str, tuple[Any, Any]] | None = None,
    varied: list[str] | None = None,
) -> float:
    """Sets up, runs and closes one job in `folder`, from the newest whole checkpoint there if there is one.

    `choices` are the Hydra options by group; `settings` are the overrides of the command or the sweep, in which an arm
    stands for its own; `parent` is the MLflow run of the sweep; `changes` are old and new values that a resumed run may
    change; a job of a sweep may have a larger budget than before; `varied` are the keys of the settings that name the
    job, none for all of them. Returns the final held-out greedy accuracy, or a prediction's peak in MB. A run that
    has finished is not repeated. Raises UserError for what a user can mend; a folder of another run stays as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    naming = [each for each in settings if each.startswith(HEADS) or names_run(each.split("=")[0], varied)]
    name = job_name([f"algorithm={choices.get('algorithm', '')}", f"seed={config.seed}", *naming])
    name = textwrap.shorten(name, LONGEST_NAME, placeholder=" …")
    progress = RunProgress(folder, name, quiet)
    with held(folder, WAIT if quiet else 1):
        earlier = read_record(folder)
        if earlier and quiet and changes is None and earlier.seed == config.seed:
            changes = longer(read_config(folder), config)
        refuse_another(folder, earlier, config, changes)
        result = result_of(folder, config)
        if result is not None:
            left = send_unsent(config.tracking, folder)
            if left:
                raise UserError(
                    f"{left} entries of the run in {folder} are still unsent, because its store does not accept them; "
                    "mend the store, then type the same command again."
                )
            progress.show(f"the run in {folder} is finished; a larger budget.limit continues it.")
            return result
        command = resume_command(folder, config)
        with reported(progress, command if not parent or changes is not None else ""), termination() as signals:
            phases = Phases(HOST) if config.mode is Mode.predict else prepare(config)
            tags = run_tags(config, choices, phases.device, parent) | {"overrides": json.dumps(settings)}
            progress.report(f"opening the store {redacted(config.tracking.uri)}")
            resumes = earlier.mlflow_run if earlier else None
            tracker = start_run(config.tracking, name, tags, folder, resumes, progress.report, command)
            uri = os.environ.get("MLFLOW_TRACKING_URI", config.tracking.uri)
            record = Record(config_id(config), config.seed, tracker.run_id, uri, choices, settings, parent)
            before = {path: path.read_text("utf-8") for path in (folder / RECORD, folder / CONFIG) if path.is_file()}
            with tracker.running(), tracker.system_metrics(config.tracking.system_metrics):
                write_record(folder, record, config)
                if CONFIGURATION not in read_entries(folder / LOG):  # of a new run, or of one interrupted before it
                    log_configuration(config, choices, folder, tracker)
                if changes:
                    log_changes(config, changes, settings, folder, tracker)
                if config.mode is Mode.predict:
                    result = log_prediction(config, tracker, progress)
                else:
                    with explained(config, phases, tracker, progress), processes.leading():
                        processes.agreed((config, folder))
                        with kept_if_refused(before):
                            run = start_job(config, folder, phases, tracker, progress, signals)
                        result = train(run) if config.mode is Mode.train else measure_quality(run)
            progress.keep(result=result)
        return result


def follow() -> None:
    """Takes part in the run that the leader starts: shares its passes, and writes nothing.

    The leader reports an error of this process.
    """
    with processes.following(), ends_with(processes.launcher()):
        processes.join()
        received: Any = processes.agreed(None)
        config, folder = received
        with termination() as signals:
            train(start_job(config, folder, prepare(config), Silent(), Silent(), signals))
        processes.leave()


def names_run(key: str, varied: list[str] | None) -> bool:
    """Whether a setting is part of a run's name: in a sweep, one in which its jobs differ, else one of its training."""
    return key in varied if varied is not None else defines_arm(key)


def refuse_another(
    folder: Path, earlier: Record | None, config: Config, changes: dict[str, tuple[Any, Any]] | None
) -> None:
    """Raises UserError if the folder holds another run than that of the configuration, naming the keys that differ."""
    if earlier is None:
        if (folder / "checkpoints").exists():
            raise UserError(f"the folder '{folder}' holds checkpoints of an unknown run; choose another hydra.run.dir.")
    elif changes is None and (earlier.config_id, earlier.seed) != (config_id(config), config.seed):
        different = differences(read_config(folder), plain(config))
        different = {k: v for k, v in different.items() if k == "seed" or defines_arm(k)}
        values = " ".join(f"{key}={new}" for key, (_, new) in different.items() if all(map(may_change, different)))
        raise UserError(
            f"the folder '{folder}' holds another run ({described(different)}); choose another hydra.run.dir, or "
            f"resume that run: bakeoff resume={folder} {values}".rstrip()
            + "."
        )
    found = newest_whole(folder / "checkpoints", lambda message: None) if changes else None
    if found and read_run(found)["training_id"] != training_id(config):
        raise UserError(
            f"the checkpoint '{found}' is of a run with other values than the folder's; move it, or choose another "
            "folder."
        )


@contextmanager
def kept_if_refused(before: dict[Path, str]) -> Iterator[None]:
    """Restores the files of an earlier run, given as text by path, if the run that follows cannot start."""
    try:
        yield
    except UserError:
        for path, text in before.items():
            replace_text(path, text)
        raise


def log_changes(
    config: Config, changes: dict[str, tuple[Any, Any]], settings: list[str], folder: Path, tracker: Tracker
) -> None:
    """Logs what a resumed run changes: parameters keep their first value, and a tag `changed.KEY` holds the last."""
    new = {f"changed.{key}": str(value) for key, (_, value) in changes.items()}
    tracker.tags({"config_id": config_id(config), "overrides": json.dumps(settings), **new})
    tracker.artifact(folder / CONFIG, "config")


def start_job(
    config: Config,
    folder: Path,
    phases: Phases,
    tracker: Tracker | Silent,
    progress: RunProgress | Silent,
    signals: list[int],
) -> Run:
    """The run at its start, or where its newest whole checkpoint left it."""
    loop = start(config, phases, progress.report)
    identity = {"training_id": training_id(config), "start": loop.start}
    tracker.tags({"start": loop.start})
    if sizes := config.task.sizes():
        progress.report(sizes)
        tracker.tags({"data": sizes})
    found = processes.led(lambda: newest_whole(folder / "checkpoints", progress.report))
    if found:
        if read_run(found) != identity:
            raise UserError(
                f"the checkpoint '{found}' is of another run or other start weights; move it, or choose another folder."
            )
        loop = replace(loop, learner=load_checkpoint(found, loop.learner))
        progress.report(f"resumed after update {loop.learner.counters.updates}")
    else:
        if config.mode is Mode.train:
            progress.report(rates(config))
        tracker.metrics(peak_metrics(phases.take().peaks) | named("sft/", loop.supervised), 0)
        if loop.reward_quality is not None:
            tracker.metrics(pair_metrics(loop.reward_quality), 0)
        if config.measure.memory_prediction and processes.leads():
            tracker.metrics(predicted_metrics(predict(config).peaks), 0)
    return Run(config, folder, loop, tracker, progress, identity, signals)


def rates(config: Config) -> str:
    """The learning rates of a run, or the radius of its trust region, and their source."""
    algorithm = method_of(config)
    optimizer = algorithm.optimizer
    used = f"{'learning rate' if optimizer.tuned_key == 'lr' else optimizer.tuned_key} {optimizer.tuned:.3g}"
    if isinstance(algorithm.critic, OwnStep):
        used += f", the critic's {algorithm.critic.optimizer.lr:.3g}"
    if not config.tuned.name:
        return f"{used}; not tuned on this task and model: `bakeoff-tune` with the same keys tunes it"
    if config.tuned.task not in ("", task_id(config)):
        return f"{used}; tuned values of {config.tuned.name}, from another version of this task, model or reward"
    return f"{used}; tuned values of {config.tuned.name}"


def log_configuration(config: Config, choices: dict[str, str], folder: Path, tracker: Tracker) -> None:
    """Logs every parameter, the chosen options, the lock and, in the end, the composed file."""
    values = plain(config)
    tracker.params(flatten(values) | {f"choice/{group}": choice for group, choice in choices.items()})
    files = ", ".join(config.task.files().values())
    for context in ("training", "evaluation"):  # by what is in its files, as the identity of a configuration is
        identity = digest({context: by_content(values["task"])})
        tracker.dataset(f"{choices.get('task', '')} {context}", identity, files or "generated", context)
    lock = ROOT / "requirements.lock"  # which a wheel lacks
    if lock.is_file():  # what is sent is in the run's folder, and stays as it was
        replace_text(folder / lock.name, lock.read_text())
        tracker.artifact(folder / lock.name, "config")
    tracker.artifact(folder / CONFIG, "config")


def run_tags(config: Config, choices: dict[str, str], device: torch.device, parent: str | None) -> dict[str, str]:
    """Tags by which a person filters and groups runs in MLflow."""
    tags = {
        "study": choices.get("sweeps", "none"),
        "config_id": config_id(config),
        "arm": config.arm or choices.get("algorithm", ""),
        "algorithm": choices.get("algorithm", ""),
        "model": choices.get("model", ""),
        "task": choices.get("task", ""),
        "seed": str(config.seed),
        "tuned": config.tuned.name or "untuned",
        "commit": commit(),
        "device": device_name(device),
        "torch": torch.__version__,
    }
    tags["mlflow.note.content"] = (
        f"**{tags['algorithm']}** trains `{tags['model']}` on `{tags['task']}`, seed {config.seed}. Charts: `reward/`, "
        "`eval/`, `kl/`, `time/`, `memory/`; completions are in the artifacts `completions.json` and `heldout.json`."
    )
    return tags | ({"mlflow.parentRunId": parent} if parent else {})


@contextmanager
def reported(progress: RunProgress, command: str) -> Iterator[None]:
    """Records the final state of the run for the sweep's view, and the traceback of an unexpected error.

    An error gets a note with the command that resumes the run, unless a mistake ended it before a checkpoint.
    """
    try:
        with reraising_interrupts():
            yield
        progress.end("done")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            progress.end("killed")
        elif isinstance(error, UserError):
            progress.end("failed", str(error))
        else:
            with suppress(OSError):  # of a full disk, which may be the error too
                (progress.folder / "traceback.txt").write_text(traceback.format_exc())
            progress.end("failed", f"{type(error).__name__}: {error}; see {progress.folder / 'traceback.txt'}")
        begun = (progress.folder / "checkpoints").exists() or not isinstance(error, UserError)
        if command and begun and (progress.folder / RECORD).exists():
            error.add_note(f"To resume the run, type: {command}")
        raise
