"""How long a report takes on a large store: `python -m bakeoff.report.bench [runs] [steps] [metrics]`.

The store is synthetic: ten arms, whose metrics go up with the steps.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from bakeoff.report.study import ACCURACY, load_study
from bakeoff.tracking import Tracking, start_run


def synthetic_store(
    path: Path,
    study: str,
    arms: Mapping[str, Mapping[str, str]],
    seeds: Iterable[int],
    series: Callable[[str, int], Mapping[str, Mapping[int, float]]],
    tags: Mapping[str, str] | None = None,
) -> Tracking:
    """A SQLite store of one sweep: a run for each arm and seed; returns where it is.

    `arms` are each arm's parameters by name, of which `choice/algorithm` is its algorithm; `series(arm, seed)` are its
    metrics: name → step → value. `tags` are the parent's, beside its study.
    """
    tracking = Tracking(uri=f"sqlite:///{path}")
    parent = start_run(tracking, study, {"study": study, "kind": "sweep", **(tags or {})}, None)
    rows: list[tuple[str, float, int, int, str, bool]] = []
    for arm, params in arms.items():
        for seed in seeds:
            about = {
                "mlflow.parentRunId": parent.run_id,
                "study": study,
                "config_id": arm,
                "algorithm": params.get("choice/algorithm", arm),
                "model": params.get("choice/model", "tiny"),
                "task": "sort",
                "seed": str(seed),
                "tuned": "yes",
                "start": f"start {seed}",
                "overrides": json.dumps([f"arm={arm}", f"seed={seed}"]),
            }
            run = start_run(tracking, f"{arm} {seed}", about, None)
            run.params(dict(params) | {"seed": seed})
            run.client.set_terminated(run.run_id, "FINISHED")
            for metric, values in series(arm, seed).items():
                for step, value in values.items():
                    missing = math.isnan(value)
                    rows.append((metric, 0.0 if missing else value, 1000 + step, step, run.run_id, missing))
    parent.client.set_terminated(parent.run_id, "FINISHED")
    with sqlite3.connect(path) as connection:
        connection.executemany(
            "INSERT INTO metrics (key, value, timestamp, step, run_uuid, is_nan) VALUES (?, ?, ?, ?, ?, ?)", rows
        )
        latest = "INSERT OR REPLACE INTO latest_metrics (key, value, timestamp, step, run_uuid, is_nan) "
        connection.executemany(latest + "VALUES (?, ?, ?, ?, ?, ?)", rows)
    return tracking


ARMS = 10
SHOWN = [
    ACCURACY,
    "eval/sampled_accuracy",
    "reward/mean",
    "kl/reference_k3_per_sequence",
    "kl/behaviour_k3_per_token",
    "kl/beta_behaviour",
    *(f"progress/{unit}" for unit in ("sequences", "tokens", "seconds")),
    *(f"time/{phase}" for phase in ("rollout", "experience", "actor_update", "critic_update")),
    *(f"memory/{phase}_mb" for phase in ("rollout", "experience", "actor_update", "critic_update", "peak")),
    *(f"memory/weights_{role}_mb" for role in ("actor", "critic", "reference")),
]


def main() -> None:
    """Makes the store, reads it, makes the whole page, and says how long each took."""
    runs, steps, metrics = (int(a) for a in (sys.argv[1:] + ["1000", "200", "30"][len(sys.argv) - 1 :]))
    arms = {f"arm {number}": {"batch.group_size": "4"} for number in range(ARMS)}
    seeds = range(1, runs // ARMS + 1)
    names = [*SHOWN, *(f"metric/{number}" for number in range(metrics - len(SHOWN)))]

    def series(arm: str, seed: int) -> Iterator[tuple[str, dict[int, float]]]:
        return ((name, {step: step / steps + seed / 100 for step in range(steps)}) for name in names)

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        tracking = synthetic_store(Path(folder) / "mlflow.db", "methods", arms, seeds, lambda a, s: dict(series(a, s)))
        print(f"made {runs} runs × {steps} steps × {metrics} metrics in {time.perf_counter() - began:.1f} s")
        os.sync()  # a user's store was not written a second ago
        began = time.perf_counter()
        study = load_study("methods", tracking)
        print(f"read {len(study.metrics):,} values in {time.perf_counter() - began:.1f} s")
        began = time.perf_counter()
        command = [sys.executable, "-m", "bakeoff.report", "methods", "--out", str(Path(folder) / "reports")]
        subprocess.run(command, env={**os.environ, "MLFLOW_TRACKING_URI": tracking.uri}, check=True)
        print(f"bakeoff-report, its start and reading too, in {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
