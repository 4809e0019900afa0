"""A store whose runs are made up, for the benchmark of the report and for its tests."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pyarrow.parquet as pq
from mlflow.entities import Metric, Param

from bakeoff.mlflow_store import METRICS, Tracking, metrics_table
from bakeoff.tracking import start_run


def synthetic_store(
    path: Path,
    study: str,
    arms: Mapping[str, Mapping[str, str]],
    seeds: Iterable[int],
    series: Callable[[str, int], Mapping[str, Mapping[int, float]]],
) -> Tracking:
    """Adds a sweep to a SQLite store, with a run for each arm and seed; returns where the store is.

    `arms` has each arm's parameters by name; `choice/algorithm` is its algorithm; `series(arm, seed)` has its
    metrics: name → step → value. Only the artifact holds all of them; the store itself has the last values.
    """
    tracking = Tracking(uri=f"sqlite:///{path}")
    parent = start_run(tracking, study, {"study": study, "kind": "sweep", "question": f"{study}?"}, path.parent)
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
            run = start_run(tracking, f"{arm} {seed}", about, path.parent)
            metrics = series(arm, seed)
            last = [Metric(name, values[max(values)], 0, max(values)) for name, values in metrics.items()]
            logged = [Param(key, value) for key, value in {**params, "seed": str(seed)}.items()]
            run.client.log_batch(run.run_id, last, logged)
            with tempfile.TemporaryDirectory() as folder:
                table = metrics_table({(name, step): v for name, own in metrics.items() for step, v in own.items()})
                pq.write_table(table, Path(folder) / METRICS)
                run.client.log_artifact(run.run_id, str(Path(folder) / METRICS))
            run.client.set_terminated(run.run_id, "FINISHED")
    parent.client.set_terminated(parent.run_id, "FINISHED")
    return tracking
