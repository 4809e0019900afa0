"""Around the loop of one run: set up or resumed before it, tracked and told of while it lasts, closed after it."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bakeoff.config import Config, arm_id, flatten, plain
from bakeoff.errors import UserError
from bakeoff.learner.checkpoint import checkpoints, load_checkpoint, read_run
from bakeoff.learner.reward_model import learned_reward
from bakeoff.learner.sft import starting_policy
from bakeoff.learner.state import make_learner
from bakeoff.measure.memory import keep_freed_memory
from bakeoff.measure.phase import Phases
from bakeoff.model.critic import choose_device
from bakeoff.model.load import encode, weights_hash
from bakeoff.paths import ROOT
from bakeoff.progress import RunProgress
from bakeoff.randomness import derive
from bakeoff.reward import LEARNED
from bakeoff.run import Run, train
from bakeoff.tracking import commit, start_run


def run_job(config: Config, folder: Path, choices: dict[str, str], parent: str | None, quiet: bool) -> float:
    """Sets up, trains and closes one run in `folder`; goes on from the checkpoint that is there, if any.

    `choices` are the Hydra options by group; `parent` is the MLflow run of the sweep. Returns the final held-out
    greedy accuracy. Raises UserError for what a user can mend.
    """
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{choices.get('algorithm', 'run')} seed {config.seed}"
    progress = RunProgress(folder, name, quiet)
    with reported(progress), termination() as signals:
        device = choose_device(config.device)
        found = checkpoints(folder / "checkpoints")
        identity = {"arm": arm_id(config), "seed": config.seed}
        earlier = read_run(found[-1]) if found else None
        if earlier is not None and {k: earlier[k] for k in identity} != identity:
            raise UserError(
                f"the output folder '{folder}' holds a run of another configuration (arm {earlier['arm']}, seed "
                f"{earlier['seed']}, not {identity['arm']}, {identity['seed']}); choose another hydra.run.dir."
            )
        actor = starting_policy(config, device, progress.say)
        heldout = encode(actor, config.task.heldout_examples(), config.task.shot_examples())
        identity["start"] = weights_hash(actor.network)
        if earlier is not None and earlier["start"] != identity["start"]:
            raise UserError(f"'{folder}' holds a run from other start weights; choose another hydra.run.dir.")
        learned = learned_reward(config, actor, progress.say) if LEARNED in config.reward.functions else None
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
        tags = run_tags(config, choices, identity, device, parent)
        tracker = start_run(config.tracking, name, tags, earlier["mlflow_run"] if earlier else None)
        identity["mlflow_run"] = tracker.run_id
        with tracker.running():
            if earlier is None:
                tracker.params(flatten(plain(config)) | {f"choice/{g}": c for g, c in choices.items()})
                tracker.metrics(learned.metrics() if learned else {}, 0)
                for path in (folder / ".hydra" / "config.yaml", ROOT / "requirements.lock"):
                    if path.is_file():
                        tracker.artifact(path, "config")
            phases, pairs = Phases(device), learned.pairs if learned else []
            return train(Run(config, folder, learner, heldout, phases, tracker, progress, identity, signals, pairs))


def run_tags(
    config: Config, choices: dict[str, str], identity: dict[str, Any], device: torch.device, parent: str | None
) -> dict[str, str]:
    """What a person filters and groups by in MLflow."""
    shown = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    tags = {
        "study": config.study.name or "none",
        "arm": identity["arm"],
        "algorithm": choices.get("algorithm", ""),
        "model": choices.get("model", ""),
        "task": choices.get("task", ""),
        "seed": str(config.seed),
        "start": identity["start"],
        "tuned": config.tuned or "untuned",
        "commit": commit(),
        "device": shown,
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
