"""One job: it sets up or resumes a run, tracks it, handles signals and errors, and closes it."""

from __future__ import annotations

import json
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bakeoff.arms import job_name
from bakeoff.config import Config, Mode, config_id, flatten, plain
from bakeoff.device import HOST, device_name
from bakeoff.errors import UserError
from bakeoff.learner.checkpoint import checkpoints, load_checkpoint, read_run
from bakeoff.measure.phase import Phases
from bakeoff.metrics import named, pair_metrics, peak_metrics, predicted_metrics, weight_metrics
from bakeoff.outcome import explained
from bakeoff.paths import ROOT
from bakeoff.predict import predict
from bakeoff.progress import RunProgress, ledger_table, megabytes, read
from bakeoff.quality.advantage import advantage_quality
from bakeoff.quality.gradient import gradient_quality
from bakeoff.run import Run, train
from bakeoff.start import prepare, start
from bakeoff.tracking import Tracker, commit, start_run


def run_job(
    config: Config, folder: Path, choices: dict[str, str], settings: list[str], parent: str | None, quiet: bool
) -> float:
    """Sets up, runs and closes one job in `folder`, from the last checkpoint there if there is one.

    `choices` are the Hydra options by group; `settings` are the overrides of the command or the sweep, in which an arm
    stands for its own; `parent` is the MLflow run of the sweep. Returns the final held-out greedy accuracy; of a
    prediction, the peak in MB. Raises UserError for what a user can mend.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = job_name([f"algorithm={choices.get('algorithm', '')}", f"seed={config.seed}", *settings])
    progress = RunProgress(folder, name, quiet)
    identity = {"config_id": config_id(config), "seed": config.seed}
    last = read(folder)
    if parent and last and last["state"] == "done" and {k: last.get(k) for k in identity} == identity:
        return float(last["result"])  # resumed sweep: this job already finished
    with reported(progress), termination() as signals:
        phases = Phases(HOST) if config.mode is Mode.predict else prepare(config)
        earlier = resumable(folder, identity)
        tags = run_tags(config, choices, phases.device, parent) | {"overrides": json.dumps(settings)}
        tracker = start_run(config.tracking, name, tags, earlier["mlflow_run"] if earlier else None)
        with tracker.running():
            if earlier is None:
                log_configuration(config, choices, folder, tracker)
            if config.mode is Mode.predict:
                result = log_prediction(config, tracker, progress)
            else:
                with explained(config, phases, tracker, progress):
                    run = start_job(config, folder, phases, tracker, progress, identity, signals)
                    result = train(run) if config.mode is Mode.train else measure_quality(run)
        progress.keep(result=result, **identity)
        return result


def resumable(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The identity of the run whose checkpoint is in the folder, none without one; raises UserError for another run."""
    found = checkpoints(folder / "checkpoints")
    if not found:
        return None
    earlier = read_run(found[-1])
    if {k: earlier.get(k) for k in identity} != identity:
        raise UserError(
            f"the output folder '{folder}' holds a run of another configuration ({describe(earlier)}, not "
            f"{describe(identity)}); choose another hydra.run.dir."
        )
    return earlier


def describe(identity: dict[str, Any]) -> str:
    """`config_id 0123456789, seed 1`."""
    return f"config_id {identity.get('config_id')}, seed {identity.get('seed')}"


def start_job(
    config: Config,
    folder: Path,
    phases: Phases,
    tracker: Tracker,
    progress: RunProgress,
    identity: dict[str, Any],
    signals: list[int],
) -> Run:
    """The run at its start, or where its last checkpoint left it."""
    loop = start(config, phases, progress.report)
    identity = identity | {"mlflow_run": tracker.run_id, "start": loop.start}
    tracker.tags({"start": loop.start})
    found = checkpoints(folder / "checkpoints")
    if found:
        if read_run(found[-1])["start"] != loop.start:
            raise UserError(f"'{folder}' holds a run from other start weights; choose another hydra.run.dir.")
        loop = replace(loop, learner=load_checkpoint(found[-1], loop.learner))
        progress.report(f"resumed after update {loop.learner.counters.updates}")
    else:
        tracker.metrics(peak_metrics(phases.take().peaks), 0)
        if loop.reward_quality is not None:
            tracker.metrics(pair_metrics(loop.reward_quality), 0)
        if config.measure.memory_prediction:
            tracker.metrics(predicted_metrics(predict(config).peaks), 0)
    return Run(config, folder, loop, tracker, progress, identity, signals)


def log_configuration(config: Config, choices: dict[str, str], folder: Path, tracker: Tracker) -> None:
    """Logs every parameter, the chosen options, the composed file and the lock."""
    tracker.params(flatten(plain(config)) | {f"choice/{group}": choice for group, choice in choices.items()})
    for path in (folder / ".hydra" / "config.yaml", ROOT / "requirements.lock"):
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
    return prediction.peak / 1e6


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
        "`eval/`, `kl/`, `time/`, `memory/`; completions are in the artifact `completions.json`."
    )
    return tags | ({"mlflow.parentRunId": parent} if parent else {})


@contextmanager
def reported(progress: RunProgress) -> Iterator[None]:
    """Records the final state of the run for the sweep's view, and the traceback of an unexpected error."""
    try:
        yield
        progress.end("done")
    except (KeyboardInterrupt, SystemExit):
        progress.end("killed")
        raise
    except UserError as error:
        progress.end("failed", str(error))
        raise
    except BaseException as error:
        (progress.folder / "traceback.txt").write_text(traceback.format_exc())
        progress.end("failed", f"{type(error).__name__}: {error}; see {progress.folder / 'traceback.txt'}")
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
