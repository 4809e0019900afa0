"""The command `bakeoff-reward-model`: the stage of the reward model alone, judged on held-out pairs."""

from __future__ import annotations

import sys
from typing import Any

import hydra
import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from bakeoff.config import Config, flatten, plain, register
from bakeoff.device import choose_device, set_up_device
from bakeoff.errors import UserError, fail
from bakeoff.learner.reward_model import learned_reward
from bakeoff.learner.sft import starting_policy
from bakeoff.measure.phase import Phases
from bakeoff.model.load import weights_hash
from bakeoff.outcome import divergence_named
from bakeoff.paths import CONF
from bakeoff.tracking import commit, start_run
from bakeoff.validation import to_config

USAGE = """bakeoff-reward-model [key=value …]

Trains the reward model that runs with reward=learned use, and prints how well it ranks held-out pairs.
Takes what `bakeoff` takes; `bakeoff reward=learned --help` lists it. For example:

  bakeoff-reward-model preferences.pairs=4096 preferences.label_noise=0.2
  bakeoff-reward-model preferences.path=pairs.jsonl      lines of {"prompt": …, "chosen": …, "rejected": …}"""


def main() -> None:
    """Runs the stage, or finds its result; exit code 2 with one sentence for a user's mistake."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(USAGE)
        return
    register()
    console = Console()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = to_config(hydra.compose("config", overrides=["reward=learned", *sys.argv[1:]]))
        report = run(config, console)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        fail(error, "bakeoff-reward-model")
    console.print(calibration_table(report))
    console.print(
        f"held-out pairs ranked right: {report['pair_accuracy']:.3f} of {report['pairs']}; Bradley–Terry loss "
        f"{report['loss']:.3f}; calibration error {report['calibration_error']:.3f}",
        highlight=False,
    )


def run(config: Config, console: Console) -> dict[str, Any]:
    """Trains and judges the reward model, tracked as an MLflow run of its own."""
    if config.threads:
        torch.set_num_threads(config.threads)
    show = lambda message: console.print(f"[dim]{message}[/]", highlight=False)  # noqa: E731
    device = choose_device(config.device)
    set_up_device(device, config.deterministic, config.memory_limit_mb)
    phases = Phases(device)
    with divergence_named(config, phases):
        start = starting_policy(config, phases, show)
    tags = {"kind": "reward_model", "commit": commit(), "start": weights_hash(start.network)}
    tracker = start_run(config.tracking, "reward model", tags)
    with tracker.running():
        values = {key: plain(config)[key] for key in ("task", "model", "sft", "preferences")}
        tracker.params(flatten(values))
        with divergence_named(config, phases):
            learned = learned_reward(config, start, phases, show)
        tracker.metrics(learned.metrics(), 0)
        tracker.table(learned.report["calibration"], "calibration.json")
    return learned.report


def calibration_table(report: dict[str, Any]) -> Table:
    """Of the pairs on which the model is so sure, how many does it rank right?"""
    table = Table(title="calibration on held-out pairs", title_justify="left", box=None, pad_edge=False)
    for column in ("probability", "pairs", "said", "right"):
        table.add_column(column, justify="right")
    for row in report["calibration"]:
        span = f"{row['from']:.1f}–{row['to']:.1f}"
        table.add_row(span, str(row["pairs"]), f"{row['said']:.3f}", f"{row['right']:.3f}")
    return table


if __name__ == "__main__":
    main()
