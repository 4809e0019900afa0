"""The command `bakeoff-reward-model`: the stage of the reward model alone, and its quality on held-out pairs."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bakeoff.config import Config, register
from bakeoff.early import check_overrides
from bakeoff.errors import answering
from bakeoff.identity import flatten, plain
from bakeoff.learner.reward_training import PairQuality, learned_reward
from bakeoff.learner.sft import starting_policy
from bakeoff.metrics import pair_metrics
from bakeoff.model.weights import weights_hash
from bakeoff.outcome import divergence_named
from bakeoff.paths import commit
from bakeoff.start import collector_of, prepare
from bakeoff.terminal import plain_table
from bakeoff.tracking import start_run
from bakeoff.validation import compose

USAGE = """bakeoff-reward-model [key=value …]

Trains the reward model of runs with reward=learned, and prints how well it ranks held-out pairs.
It takes the same keys as `bakeoff`; `bakeoff --help all` lists them. For example:

  bakeoff-reward-model preferences.pairs=4096 preferences.label_noise=0.2
  bakeoff-reward-model preferences.path=pairs.jsonl      lines of {"prompt": …, "chosen": …, "rejected": …}"""


def check(arguments: list[str]) -> None:
    """Raises UserError for what can be refused before the libraries of a run are here; see early.py."""
    check_overrides(["reward=learned", *arguments])


def main() -> None:
    """Runs the stage, or finds its result; exit code 2 with one sentence for a user's mistake."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(USAGE)
        return
    register()
    console = Console()
    with answering("bakeoff-reward-model"):
        quality = run(compose(["reward=learned", *sys.argv[1:]]), console)
    console.print(calibration_table(quality))
    console.print(
        f"ranks {quality.accuracy:.3f} of {quality.pairs} held-out pairs right; Bradley–Terry loss {quality.loss:.3f}; "
        f"calibration error {quality.calibration_error:.3f}",
        highlight=False,
    )


def run(config: Config, console: Console) -> PairQuality:
    """Trains the reward model and measures its quality, tracked as an MLflow run of its own."""

    def report(message: str) -> None:
        console.print(message, style="dim", highlight=False, markup=False)

    phases = prepare(config)
    with divergence_named(config, phases):
        policy, _ = starting_policy(config, collector_of(config), phases, report)
    tags = {"kind": "reward_model", "commit": commit(), "start": weights_hash(policy.network)}
    with tempfile.TemporaryDirectory() as folder:
        tracker = start_run(config.tracking, "reward model", tags, Path(folder), report=report)
        with tracker.running():
            values = {key: plain(config)[key] for key in ("task", "model", "sft", "preferences")}
            tracker.params(flatten(values))
            with divergence_named(config, phases):
                learned = learned_reward(config, collector_of(config), policy, phases, report)
            tracker.metrics(pair_metrics(learned.quality), 0)
            tracker.table(learned.quality.calibration, "calibration.json")
    return learned.quality


def calibration_table(quality: PairQuality) -> Table:
    """Stated and observed accuracy on the pairs of each bin."""
    table = plain_table("calibration on held-out pairs", (), ("probability", "pairs", "stated", "observed"))
    for row in quality.calibration:
        span = f"{row['from']:.1f}–{row['to']:.1f}"
        table.add_row(span, str(row["pairs"]), f"{row['stated']:.3f}", f"{row['observed']:.3f}")
    return table
