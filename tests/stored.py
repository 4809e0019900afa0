"""Reads a run from the MLflow store of a folder."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run

from bakeoff.measure import NOT_REPRODUCIBLE
from bakeoff.mlflow_store import Tracking
from bakeoff.report import store
from bakeoff.report.study import Study


def tracking(folder: Path) -> Tracking:
    return Tracking(uri=f"sqlite:///{folder / 'mlflow.db'}")


def client_of(folder: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=tracking(folder).uri)


def named(run: Run) -> pd.DataFrame:
    """The run as a study's frame of one row."""
    return store.runs_frame([run]).assign(name="run")


def only_run(folder: Path) -> Run:
    client = client_of(folder)
    (run,) = client.search_runs([client.get_experiment_by_name("bakeoff").experiment_id])
    return run


def history(folder: Path) -> pd.Series:
    """Every metric that the configuration determines: all but time, speed and memory."""
    run = only_run(folder)
    frame = store.metrics_frame(client_of(folder), [run], named(run))
    frame = frame.astype({"metric": str})  # categories include metrics of time and memory, which may differ
    frame = frame[~frame["metric"].str.startswith(NOT_REPRODUCIBLE)]
    return frame.set_index(["metric", "step"])["value"].sort_index()


def study_of(name: str, runs: list[dict], params: list[tuple], metrics: list[tuple]) -> Study:
    """A study as its page reads it.

    A parameter is (run, key, value), a metric (run, metric, step, value, name, seed).
    """
    frame = pd.DataFrame(metrics, columns=["run", "metric", "step", "value", "name", "seed"])
    return Study(
        name=name,
        question="",
        run="",
        runs=pd.DataFrame(runs),
        unfinished=pd.DataFrame(),
        params=pd.DataFrame(params, columns=["run", "key", "value"]),
        metrics=frame.astype({"run": "category", "metric": "category", "name": "category"}),
        completions=pd.DataFrame(),
    )
