"""Around the loop of one run: set up or resumed before it, tracked and told of while it lasts, closed after it."""

from __future__ import annotations

import json
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bakeoff.config import Config, Mode, arm_id, flatten, plain
from bakeoff.device import HOST, choose_device, device_name, set_up_device
from bakeoff.errors import UserError
from bakeoff.learner.checkpoint import checkpoints, load_checkpoint, read_run
from bakeoff.learner.offload import Offload
from bakeoff.learner.reward_model import learned_reward
from bakeoff.learner.sft import starting_policy
from bakeoff.learner.state import make_learner, passes_of
from bakeoff.measure.memory import keep_freed_memory
from bakeoff.measure.phase import Phases
from bakeoff.measure.statistics import peak_megabytes, weight_megabytes
from bakeoff.model.load import encode, weights_hash
from bakeoff.outcome import explained
from bakeoff.paths import ROOT
from bakeoff.predict import predict
from bakeoff.progress import RunProgress, ledger_table, megabytes, read
from bakeoff.quality.advantage import advantage_quality
from bakeoff.quality.gradient import gradient_quality
from bakeoff.randomness import derive
from bakeoff.reward import LEARNED
from bakeoff.run import Run, train
from bakeoff.sweep import job_name
from bakeoff.tracking import Tracker, commit, start_run


def run_job(
    config: Config, folder: Path, choices: dict[str, str], overrides: list[str], parent: str | None, quiet: bool
) -> float:
    """Sets up, trains and closes one run in `folder`; goes on from the checkpoint that is there, if any.

    `choices` are the Hydra options by group, `overrides` what the command or the sweep set; `parent` is the MLflow
    run of the sweep. Returns the final held-out greedy accuracy, or of a prediction the peak in MB. Raises UserError
    for what a user can mend.
    """
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    folder.mkdir(parents=True, exist_ok=True)
    name = job_name([f"algorithm={choices.get('algorithm', '')}", f"seed={config.seed}", *overrides])
    progress = RunProgress(folder, name, quiet)
    identity = {"arm": arm_id(config), "seed": config.seed}
    last = read(folder)
    if parent and last and last["state"] == "done" and {k: last.get(k) for k in identity} == identity:
        return float(last["result"])  # a sweep that is gone on with has this job behind it
    with reported(progress), termination() as signals:
        device = HOST if config.mode is Mode.predict else choose_device(config.device)
        found = checkpoints(folder / "checkpoints")
        earlier = read_run(found[-1]) if found else None
        if earlier is not None and {k: earlier[k] for k in identity} != identity:
            raise UserError(
                f"the output folder '{folder}' holds a run of another configuration (arm {earlier['arm']}, seed "
                f"{earlier['seed']}, not {identity['arm']}, {identity['seed']}); choose another hydra.run.dir."
            )
        set_up_device(device, config.deterministic, config.memory_limit_mb)
        tags = run_tags(config, choices, identity, device, parent) | {"overrides": json.dumps(overrides)}
        tracker = start_run(config.tracking, name, tags, earlier["mlflow_run"] if earlier else None)
        identity["mlflow_run"] = tracker.run_id
        with tracker.running():
            if earlier is None:
                tracker.params(flatten(plain(config)) | {f"choice/{g}": c for g, c in choices.items()})
                for path in (folder / ".hydra" / "config.yaml", ROOT / "requirements.lock"):
                    if path.is_file():
                        tracker.artifact(path, "config")
            if config.mode is Mode.predict:
                result = predicted(config, tracker, progress)
            else:
                phases = Phases(device)
                with explained(config, phases, tracker, progress):
                    run = set_up(config, folder, phases, tracker, progress, identity, signals, found)
                    result = train(run) if config.mode is Mode.train else measured(run)
        progress.keep(result=result, **{key: identity[key] for key in ("arm", "seed")})
        return result


def set_up(
    config: Config,
    folder: Path,
    phases: Phases,
    tracker: Tracker,
    progress: RunProgress,
    identity: dict[str, Any],
    signals: list[int],
    found: list[Path],
) -> Run:
    """The run with its models, at its start or where the last checkpoint found left it."""
    actor = starting_policy(config, phases, progress.say)
    heldout = encode(actor, config.task.heldout_examples(), config.task.shot_examples())
    identity["start"] = weights_hash(actor.network)
    if found and read_run(found[-1])["start"] != identity["start"]:
        raise UserError(f"'{folder}' holds a run from other start weights; choose another hydra.run.dir.")
    tracker.tags({"start": identity["start"]})
    learned = learned_reward(config, actor, phases, progress.say) if LEARNED in config.reward.functions else None
    learner = make_learner(
        config.algorithm,
        actor,
        config.model.lora,
        config.measure.kl_to_reference,
        derive(config.seed, "critic"),
        learned.model if learned else None,
    )
    if found:
        load_checkpoint(found[-1], learner)
        progress.say(f"going on from update {learner.counters.updates}")
    else:
        tracker.metrics(peak_megabytes(phases.take().peaks) | (learned.metrics() if learned else {}), 0)
        if config.measure.memory_prediction:
            peaks = predict(config).peaks
            tracker.metrics({f"memory/predicted_{name}_mb": peak.allocated / 1e6 for name, peak in peaks.items()}, 0)
    phases.before = Offload(learner, phases) if config.offload else None
    pairs = learned.pairs if learned else []
    return Run(config, folder, learner, heldout, phases, tracker, progress, identity, signals, pairs)


def measured(run: Run) -> float:
    """Logs the quality of the method's gradient or advantages; returns the mean cosine or the correlation."""
    config, learner, say = run.config, run.learner, run.progress.say
    passes = passes_of(config, run.phases)
    run.tracker.tags({"kind": config.mode.value})
    if config.mode is Mode.gradient_quality:
        metrics, head = gradient_quality(config, learner, passes, say), "gradient/cosine"
    else:
        metrics, positions = advantage_quality(config, learner, passes, say)
        head = "advantage/correlation"
        for position, values in positions.items():
            run.tracker.metrics(values, position)
    run.tracker.metrics(metrics, 0)
    say(", ".join(f"{name} {value:.3g}" for name, value in metrics.items()))
    return metrics[head]


def predicted(config: Config, tracker: Tracker, progress: RunProgress) -> float:
    """Logs the predicted ledger as a run's is logged, and shows it; returns its peak in MB."""
    prediction = predict(config)
    tracker.tags({"kind": "prediction"})
    tracker.metrics(peak_megabytes(prediction.peaks) | weight_megabytes(prediction.weight_bytes), 0)
    sampler = config.rollout
    progress.show(
        ledger_table(
            prediction.peaks,
            f"{sampler.prompts} prompts of {prediction.prompt} tokens, {sampler.group_size} completions each of "
            f"{prediction.completion} tokens; peak {megabytes(prediction.peak)}",
        )
    )
    return prediction.peak / 1e6


def run_tags(
    config: Config, choices: dict[str, str], identity: dict[str, Any], device: torch.device, parent: str | None
) -> dict[str, str]:
    """What a person filters and groups by in MLflow."""
    tags = {
        "study": config.study.name or "none",
        "arm": identity["arm"],
        "algorithm": choices.get("algorithm", ""),
        "model": choices.get("model", ""),
        "task": choices.get("task", ""),
        "seed": str(config.seed),
        "tuned": config.tuned or "untuned",
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
    """Leaves the run's last state where the sweep's view reads it, and the traceback of what was not foreseen."""
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
    """The signals received: SIGTERM asks a run to stop after the update in hand, a second one ends it at once."""
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
