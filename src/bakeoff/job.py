"""One job: it sets up or resumes a run in its folder, tracks it, handles signals and errors, and closes it."""

from __future__ import annotations

import json
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bakeoff.arms import job_name
from bakeoff.config import Config, Mode, config_id, flatten, plain, training_id
from bakeoff.cost import cost_of
from bakeoff.device import HOST, device_name
from bakeoff.errors import UserError, redacted
from bakeoff.folder import (
    CONFIG,
    RECORD,
    Record,
    described,
    differences,
    held,
    read_config,
    read_record,
    result_of,
    resume_command,
    write_record,
)
from bakeoff.learner.checkpoint import load_checkpoint, newest_whole, read_run
from bakeoff.measure.phase import Phases
from bakeoff.metrics import named, pair_metrics, peak_metrics, predicted_metrics, predicted_seconds, weight_metrics
from bakeoff.outcome import explained
from bakeoff.paths import ROOT
from bakeoff.predict import Prediction, predict
from bakeoff.progress import RunProgress, cost_table, ledger_table, megabytes
from bakeoff.quality.advantage import advantage_quality
from bakeoff.quality.gradient import gradient_quality
from bakeoff.run import Run, train
from bakeoff.start import prepare, start
from bakeoff.tracking import LOG, NOT_IN_CONFIG_ID, Tracker, commit, send_unsent, start_run

WAIT = 20.0  # seconds that a job of a sweep waits for a process of an earlier launch, which is about to end
GRACE = 5.0  # seconds that a job whose sweep has died may take to save its state


def run_job(
    config: Config,
    folder: Path,
    choices: dict[str, str],
    settings: list[str],
    parent: str | None,
    quiet: bool,
    changes: dict[str, tuple[Any, Any]] | None = None,
) -> float:
    """Sets up, runs and closes one job in `folder`, from the newest whole checkpoint there if there is one.

    `choices` are the Hydra options by group; `settings` are the overrides of the command or the sweep, in which an arm
    stands for its own; `parent` is the MLflow run of the sweep; `changes` are old and new values that a resumed run may
    change. Returns the final held-out greedy accuracy; of a prediction, the peak in MB. A run that has finished is not
    repeated. Raises UserError for what a user can mend; a folder of another run stays as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = job_name([f"algorithm={choices.get('algorithm', '')}", f"seed={config.seed}", *settings])
    progress = RunProgress(folder, name, quiet)
    with held(folder, WAIT if quiet else 1):
        earlier = read_record(folder)
        refuse_another(folder, earlier, config, changes)
        result = result_of(folder, config)
        if result is not None:
            left = send_unsent(config.tracking, folder)
            if left:
                raise UserError(
                    f"{left} entries of the run in {folder} are still unsent: its store does not take them."
                )
            progress.show(f"the run in {folder} is finished; a larger budget.limit continues it.")
            return result
        command = resume_command(folder, config)
        with reported(progress, command if not parent or changes is not None else ""), termination() as signals:
            phases = Phases(HOST) if config.mode is Mode.predict else prepare(config)
            tags = run_tags(config, choices, phases.device, parent) | {"overrides": json.dumps(settings)}
            resumes, logged = earlier.mlflow_run if earlier else None, (folder / LOG).exists()
            tracker = start_run(config.tracking, name, tags, folder, resumes, progress.report, command)
            if earlier and tracker.new:
                store = redacted(config.tracking.uri)
                progress.report(f"the store {store} does not hold this run; a new one there gets all of it")
            uri = os.environ.get("MLFLOW_TRACKING_URI", config.tracking.uri)
            record = Record(config_id(config), config.seed, tracker.run_id, uri, choices, settings, parent)
            write_record(folder, record, config)
            with tracker.running():
                if tracker.new and not logged:  # a new store gets what the folder has logged
                    log_configuration(config, choices, folder, tracker)
                if changes:
                    log_changes(config, changes, folder, tracker)
                if config.mode is Mode.predict:
                    result = log_prediction(config, tracker, progress)
                else:
                    with explained(config, phases, tracker, progress):
                        run = start_job(config, folder, phases, tracker, progress, signals)
                        result = train(run) if config.mode is Mode.train else measure_quality(run)
            progress.keep(result=result)
        return result


def refuse_another(
    folder: Path, earlier: Record | None, config: Config, changes: dict[str, tuple[Any, Any]] | None
) -> None:
    """Raises UserError if the folder holds another run than that of the configuration, naming the keys that differ."""
    if earlier is None:
        if (folder / "checkpoints").exists():
            raise UserError(f"the folder '{folder}' holds checkpoints of an unknown run; choose another hydra.run.dir.")
    elif changes is None and (earlier.config_id, earlier.seed) != (config_id(config), config.seed):
        different = differences(read_config(folder), plain(config))
        different = {k: v for k, v in different.items() if k == "seed" or k.split(".")[0] not in NOT_IN_CONFIG_ID}
        raise UserError(
            f"the folder '{folder}' holds another run ({described(different)}); choose another hydra.run.dir, or "
            f"resume that run by resume={folder}."
        )


def log_changes(config: Config, changes: dict[str, tuple[Any, Any]], folder: Path, tracker: Tracker) -> None:
    """Logs what a resumed run changes: parameters keep their first value, and a tag `changed.KEY` holds the last."""
    new = {f"changed.{key}": str(value) for key, (_, value) in changes.items()}
    tracker.tags({"config_id": config_id(config), **new})
    tracker.artifact(folder / CONFIG, "config")


def start_job(
    config: Config, folder: Path, phases: Phases, tracker: Tracker, progress: RunProgress, signals: list[int]
) -> Run:
    """The run at its start, or where its newest whole checkpoint left it."""
    loop = start(config, phases, progress.report)
    identity = {"training_id": training_id(config), "start": loop.start}
    tracker.tags({"start": loop.start})
    found = newest_whole(folder / "checkpoints", progress.report)
    if found:
        if read_run(found) != identity:
            raise UserError(
                f"'{found}' is of another run or of other start weights; move it away, or choose another folder."
            )
        loop = replace(loop, learner=load_checkpoint(found, loop.learner))
        progress.report(f"resumed after update {loop.learner.counters.updates}")
    else:
        tracker.metrics(peak_metrics(phases.take().peaks) | named("sft/", loop.supervised), 0)
        if loop.reward_quality is not None:
            tracker.metrics(pair_metrics(loop.reward_quality), 0)
        if config.measure.memory_prediction:
            tracker.metrics(predicted_metrics(predict(config).peaks), 0)
    return Run(config, folder, loop, tracker, progress, identity, signals)


def log_configuration(config: Config, choices: dict[str, str], folder: Path, tracker: Tracker) -> None:
    """Logs every parameter, the chosen options, the composed file and the lock."""
    tracker.params(flatten(plain(config)) | {f"choice/{group}": choice for group, choice in choices.items()})
    for path in (folder / CONFIG, ROOT / "requirements.lock"):
        if path.is_file():
            tracker.artifact(path, "config")


def measure_quality(run: Run) -> float:
    """Logs the quality of the method's gradient or advantages; returns the mean cosine or the correlation."""
    config, tracker = run.config, run.tracker
    tracker.tags({"kind": config.mode.value})
    if config.mode is Mode.gradient_quality:
        gradient = gradient_quality(run.loop, config.quality, run.progress.report)
        metrics, result = named("gradient/", gradient), gradient.cosine
    else:
        advantage, positions = advantage_quality(run.loop, config.quality, run.progress.report)
        metrics, result = named("advantage/", advantage), advantage.correlation
        for position, here in positions.items():
            at = {f"{name}_by_position": value for name, value in named("advantage/", here).items()}
            tracker.metrics(at, position)
    tracker.metrics(metrics, 0)
    run.progress.report(", ".join(f"{name} {value:.3g}" for name, value in metrics.items()))
    return result


def log_prediction(config: Config, tracker: Tracker, progress: RunProgress) -> float:
    """Logs and shows the predicted ledger; returns its peak in MB."""
    prediction = predict(config)
    tracker.tags({"kind": "prediction"})
    tracker.metrics(peak_metrics(prediction.peaks) | weight_metrics(prediction.weight_bytes), 0)
    batch = config.batch
    progress.show(
        ledger_table(
            prediction.peaks,
            f"{batch.prompts} prompts of {prediction.prompt} tokens, {batch.group_size} completions each of "
            f"{prediction.completion} tokens; peak {megabytes(prediction.peak)}",
        )
    )
    if config.hardware.name:
        log_cost(config, prediction, tracker, progress)
    return prediction.peak / 1e6


def log_cost(config: Config, prediction: Prediction, tracker: Tracker, progress: RunProgress) -> None:
    """Logs and shows seconds of an update, and hours and price of the budget, on the hardware."""
    cost, hardware, budget = cost_of(config, prediction), config.hardware, config.budget
    trust = "calibrated" if hardware.calibrated else "uncalibrated"
    tracker.tags({"hardware": hardware.name, "calibrated": str(hardware.calibrated).lower()})
    tracker.metrics(predicted_seconds(cost.seconds, cost.hours), 0)
    progress.show(cost_table(prediction.work, cost.seconds, f"one update on {hardware.name}", f"seconds ({trust})"))
    price = f", {cost.price:,.2f} ({trust}) at {config.price:g} an hour" if config.price else ""
    room = hardware.memory_gb * 1e9
    small = f" It does not fit: the peak is {megabytes(prediction.peak)}, the device has {megabytes(room)}."
    progress.show(
        f"{hardware.name}: {cost.hours:,.3g} hours ({trust}){price} for {cost.updates:,} updates, which use "
        f"budget.limit={budget.limit:g} {budget.unit.value}; the supervised start, evaluation, checkpoints and code "
        f"that scores are not included.{small if 0 < room < prediction.peak else ''}",
        highlight=False,
    )


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

    An error of a run that can go on gets a note with the command: not a mistake that ends it before a checkpoint.
    """
    try:
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


@contextmanager
def termination() -> Iterator[list[int]]:
    """Yields the signals received: SIGTERM stops a run after the update in progress, a second one at once."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    try:
        previous = signal.signal(signal.SIGTERM, note)
    except ValueError:  # not the main thread: the launcher handles signals
        yield received
        return
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def ends_with(launcher: int) -> Iterator[None]:
    """Ends this process soon after its parent with this process id has died, as a launcher's processes must.

    SIGTERM comes first, upon which a run saves its state.
    """
    over = threading.Event()

    def watch() -> None:
        while os.getppid() == launcher:
            if over.wait(0.5):
                return
        os.kill(os.getpid(), signal.SIGTERM)
        over.wait(GRACE)
        os._exit(128 + signal.SIGTERM)

    if os.getppid() == launcher:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
