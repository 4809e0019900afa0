"""Seconds of an update by phase, on fixed work: the base that a speed-up is measured against."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import hydra
import torch
from rich.console import Console
from rich.table import Table

from bakeoff.config import Config, register
from bakeoff.device import choose_device, device_name, set_up_device
from bakeoff.errors import UserError
from bakeoff.learner.sft import starting_policy
from bakeoff.learner.state import make_learner
from bakeoff.measure import PHASES, TRAINING
from bakeoff.measure.memory import keep_freed_memory
from bakeoff.measure.phase import Phases
from bakeoff.model.load import encode
from bakeoff.paths import CONF
from bakeoff.progress import RunProgress
from bakeoff.run import Run, step
from bakeoff.tracking import Tracking, start_run
from bakeoff.validation import to_config

REUSE = ["algorithm.step.epochs=2", "algorithm.step.minibatches=2"]  # fixed, whatever the tuned values are
CRITIC = [override.replace("step", "critic.step", 1) for override in REUSE]
METHODS = {"grpo": REUSE, "ppo": REUSE + CRITIC, "ppo_kl": REUSE + CRITIC}
UPDATES, WARM_UP = 20, 3


def untracked_run(config: Config, folder: Path) -> Run:
    """A run set up as the command does it, whose metrics go to a store in `folder`."""
    phases = Phases(choose_device(config.device))
    set_up_device(phases.device, config.deterministic, config.memory_limit_mb)
    actor = starting_policy(config, phases, lambda message: None)
    return Run(
        config=config,
        folder=folder,
        learner=make_learner(config.algorithm, actor, config.model.lora, keep_reference=True, seed=0),
        heldout=encode(actor, config.task.heldout_examples(), []),
        phases=phases,
        tracker=start_run(Tracking(uri=f"sqlite:///{folder / 'mlflow.db'}"), "bench", {}),
        progress=RunProgress(folder, "bench", quiet=True),
        identity={},
        signals=[],
    )


def seconds(method: str, device: str, folder: Path) -> dict[str, float]:
    """Median seconds of each phase over some updates of sort-10 on `tiny`, one thread."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [f"algorithm={method}", f"device={device}", *METHODS[method]]
        config = to_config(hydra.compose("config", overrides=overrides))
    run = untracked_run(config, folder)
    rows = []
    for _ in range(WARM_UP + UPDATES):
        metrics, _, _ = step(run)
        rows.append({name.removeprefix("time/"): value for name, value in metrics.items() if name.startswith("time/")})
    return {phase: statistics.median(row.get(phase, 0.0) for row in rows[WARM_UP:]) for phase in PHASES}


def with_device(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options of the command line, `--device` among them; exits with one sentence for an unknown device."""
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), or another device of torch")
    options = parser.parse_args()
    try:
        choose_device(options.device)
    except UserError as error:
        parser.error(str(error))
    return options


def main() -> None:
    """Prints a row for each method."""
    device: str = with_device(argparse.ArgumentParser(description=__doc__)).device
    register()
    keep_freed_memory()
    torch.set_num_threads(1)
    work = "256 sequences, two epochs of two minibatches, sort-10 on tiny, one thread"
    where = device_name(choose_device(device))
    table = Table(title=f"median seconds of an update over {UPDATES} on {where}: {work}", box=None)
    columns = ("rollout", "reward", "experience", "actor_update", "critic_update", "measure")
    for column in ("method", *columns, "training"):
        table.add_column(column.replace("_", " "), justify="left" if column == "method" else "right")
    with tempfile.TemporaryDirectory() as folder:
        for method in METHODS:
            row = seconds(method, device, Path(folder))
            cells = [f"{row[phase]:.3f}" for phase in columns]
            table.add_row(method, *cells, f"{sum(row[phase] for phase in TRAINING):.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
