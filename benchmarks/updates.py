"""Seconds of an update by phase, on fixed work: the base that a speed-up is measured against."""

from __future__ import annotations

import argparse
import statistics

from rich.console import Console
from rich.table import Table

from bakeoff.config import register
from bakeoff.device import choose_device, device_name
from bakeoff.loop import update_once
from bakeoff.measure import TRAINING
from bakeoff.validation import compose
from benchmarks.start import started, with_device

REUSE = ["algorithm.optimizer.epochs=2", "algorithm.optimizer.minibatches=2"]  # fixed, whatever the tuned values are
CRITIC = [override.replace("optimizer", "critic.optimizer", 1) for override in REUSE]
METHODS = {"grpo": REUSE, "ppo": REUSE + CRITIC, "ppo_kl": REUSE + CRITIC}
UPDATES, WARM_UP = 20, 3


def seconds(method: str, device: str) -> dict[str, float]:
    """Median seconds of each phase over some updates of sort-10 on `tiny`, one thread."""
    loop = started(compose([f"algorithm={method}", f"device={device}", *METHODS[method]]))
    rows = [update_once(loop).measured.seconds for _ in range(WARM_UP + UPDATES)]
    return {phase: statistics.median(row.get(phase, 0.0) for row in rows[WARM_UP:]) for phase in (*TRAINING, "measure")}


def main() -> None:
    """Prints a row for each method."""
    device: str = with_device(argparse.ArgumentParser(description=__doc__)).device
    register()
    work = "256 sequences, two epochs of two minibatches, sort-10 on tiny, one thread"
    where = device_name(choose_device(device))
    table = Table(title=f"median seconds of an update over {UPDATES} on {where}: {work}", box=None)
    columns = ("rollout", "reward", "experience", "actor_update", "critic_update", "measure")
    for column in ("method", *columns, "training"):
        table.add_column(column.replace("_", " "), justify="left" if column == "method" else "right")
    for method in METHODS:
        row = seconds(method, device)
        cells = [f"{row[phase]:.3f}" for phase in columns]
        table.add_row(method, *cells, f"{sum(row[phase] for phase in TRAINING):.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
