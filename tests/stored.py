"""Reads a run from the MLflow store of a folder."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run

from bakeoff.measure import NOT_REPRODUCIBLE
from bakeoff.report import store
from bakeoff.tracking import Tracking


def tracking(folder: Path) -> Tracking:
    return Tracking(uri=f"sqlite:///{folder / 'mlflow.db'}")


def only_run(folder: Path) -> Run:
    client = MlflowClient(tracking_uri=tracking(folder).uri)
    (run,) = client.search_runs([client.get_experiment_by_name("bakeoff").experiment_id])
    return run


def history(folder: Path) -> pd.Series:
    """Every metric that the configuration determines: all but time, speed and memory."""
    frame = store.metrics_frame(tracking(folder), [only_run(folder)])
    frame = frame.astype({"metric": str})  # categories include metrics of time and memory, which may differ
    frame = frame[~frame["metric"].str.startswith(NOT_REPRODUCIBLE)]
    return frame.set_index(["metric", "step"])["value"].sort_index()
