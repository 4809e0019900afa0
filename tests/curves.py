"""Digests of the curves of every method: equal digests before and after a change mean bit-for-bit equal training.

    python -m tests.curves             the whole budget of `bakeoff algorithm=M seed=1`, as a Markdown table
    python -m tests.curves --updates 8 the first updates alone

Time, speed and memory are left out, which differ between identical runs. Digests compare on one machine only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

from bakeoff.measure import NOT_REPRODUCIBLE
from bakeoff.paths import CONF

HISTORY = """
    SELECT tags.value, metrics.key, metrics.step, metrics.value FROM metrics
    JOIN tags ON tags.run_uuid = metrics.run_uuid AND tags.key = 'algorithm' ORDER BY 1, 2, 3
"""


def main() -> None:
    """Runs every method and prints a row for each: digest, number of values, final held-out accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=0, help="updates of each run (default: the whole budget)")
    parser.add_argument("--methods", default="", help="methods, separated by commas (default: every one)")
    options = parser.parse_args()
    methods = options.methods or ",".join(sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml")))
    short = [f"budget={{unit: updates, limit: {options.updates}}}"] if options.updates else []
    with tempfile.TemporaryDirectory() as folder:
        sweep = [f"algorithm={methods}", "seed=1", "checkpoint.every=0", "hydra/launcher=two_jobs", *short]
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{Path(folder) / 'mlflow.db'}"}
        command = [sys.executable, "-m", "bakeoff", "--multirun", *sweep]
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=sys.stderr)
        with sqlite3.connect(Path(folder) / "mlflow.db") as store:
            rows = store.execute(HISTORY).fetchall()
    print("| method | digest of the curves | values | held-out accuracy |\n|---|---|---|---|")
    for method in dict.fromkeys(row[0] for row in rows):
        curves = [row[1:] for row in rows if row[0] == method and not row[1].startswith(NOT_REPRODUCIBLE)]
        digest = hashlib.sha256(repr(curves).encode()).hexdigest()[:12]
        accuracy = [value for metric, _, value in curves if metric == "eval/greedy_accuracy"][-1]
        print(f"| `{method}` | {digest} | {len(curves)} | {accuracy:.3f} |")


if __name__ == "__main__":
    main()
