"""The time of a report on a large store: `python -m benchmarks.report [runs] [steps] [metrics]`.

The store is synthetic: ten arms whose metrics rise with the steps.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bakeoff.report.store import load_study
from bakeoff.report.study import ACCURACY
from benchmarks.synthetic import synthetic_store

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
    """Makes the store, reads it, makes the whole page, and prints how long each took."""
    runs, steps, metrics = (int(a) for a in (sys.argv[1:] + ["1000", "200", "30"][len(sys.argv) - 1 :]))
    arms = {f"arm {number}": {"batch.group_size": "4"} for number in range(ARMS)}
    names = [*SHOWN, *(f"metric/{number}" for number in range(metrics - len(SHOWN)))]

    def series(arm: str, seed: int) -> dict[str, dict[int, float]]:
        return {name: {step: step / steps / 2 + seed / runs for step in range(steps)} for name in names}

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        tracking = synthetic_store(Path(folder) / "mlflow.db", "methods", arms, range(1, runs // ARMS + 1), series)
        print(f"made {runs} runs × {steps} steps × {metrics} metrics in {time.perf_counter() - began:.1f} s")
        began = time.perf_counter()
        study = load_study("methods", tracking)
        print(f"read {len(study.metrics):,} values in {time.perf_counter() - began:.1f} s")
        began, before = time.perf_counter(), os.times()
        command = [sys.executable, "-m", "bakeoff.report", "methods", "--out", str(Path(folder) / "reports")]
        subprocess.run(command, env={**os.environ, "MLFLOW_TRACKING_URI": tracking.uri}, check=True)
        user = os.times().children_user - before.children_user
        print(f"bakeoff-report, start and reading included: {time.perf_counter() - began:.1f} s ({user:.1f} s user)")


if __name__ == "__main__":
    main()
