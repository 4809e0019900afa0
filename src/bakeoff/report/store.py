"""Tidy frames from an MLflow store, and nothing but the store."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run

from bakeoff.config import Tracking
from bakeoff.errors import UserError
from bakeoff.tracking import open_store, store_uri


def find_sweeps(tracking: Tracking, study: str, count: int = 1) -> list[Run]:
    """The newest parent runs of a study, the newest first; raises UserError that says which command makes one."""
    client, experiment = open_store(tracking)
    found = client.search_runs(
        [experiment],
        f"tags.study = '{study}' and tags.kind = 'sweep'",
        order_by=["attributes.start_time DESC"],
        max_results=count,
    )
    if not found:
        raise UserError(
            f"the store '{tracking.uri}' holds no run of the study '{study}'; "
            f"`bakeoff sweeps={study}` makes one, and MLFLOW_TRACKING_URI names another store."
        )
    return list(found)


def children(tracking: Tracking, parent: Run) -> list[Run]:
    """The jobs of a sweep, in the order in which they were started."""
    client, experiment = open_store(tracking)
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment],
            f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'",
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        runs += page
        token = page.token
        if not token:
            return runs


def runs_frame(runs: Iterable[Run]) -> pd.DataFrame:
    """A row a run: run, status, start, and its tags (`arm`, `algorithm`, `seed`, …)."""
    rows = [
        {"run": r.info.run_id, "status": r.info.status, **{k: v for k, v in r.data.tags.items() if "mlflow." not in k}}
        for r in runs
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(seed=frame["seed"].astype(int)) if len(frame) else frame


def params_frame(runs: Iterable[Run]) -> pd.DataFrame:
    """Columns run, key, value: every parameter of every run."""
    rows = [(r.info.run_id, key, value) for r in runs for key, value in r.data.params.items()]
    return pd.DataFrame(rows, columns=["run", "key", "value"])


def metrics_frame(tracking: Tracking, runs: Iterable[Run]) -> pd.DataFrame:
    """Columns run, metric, step, value: every metric of every run, in one query where the store is a database.

    A resumed run writes the steps after its checkpoint twice; the later of the two is kept.
    """
    run_ids = [run.info.run_id for run in runs]
    uri = store_uri(tracking)
    if "://" in uri and uri.split("://")[0].split("+")[0] in ("sqlite", "postgresql", "mysql", "mssql"):
        frame = _from_database(uri, run_ids)
    else:
        frame = _from_server(MlflowClient(tracking_uri=uri), runs)
    frame = frame.sort_values(["run", "metric", "step", "timestamp"], kind="stable")
    frame = frame.drop_duplicates(["run", "metric", "step"], keep="last")
    return frame.drop(columns="timestamp").reset_index(drop=True)


def _from_database(uri: str, run_ids: list[str]) -> pd.DataFrame:
    import sqlalchemy

    names = ("run_uuid", "key", "step", "value", "is_nan", "timestamp")
    table = sqlalchemy.table("metrics", *map(sqlalchemy.column, names))
    value = sqlalchemy.case((table.c.is_nan, None), else_=table.c.value).label("value")  # a store's NaN is a flagged 0
    query = sqlalchemy.select(
        table.c.run_uuid.label("run"), table.c.key.label("metric"), table.c.step, value, table.c.timestamp
    ).where(table.c.run_uuid.in_(run_ids))
    engine = sqlalchemy.create_engine(uri)
    try:
        with engine.connect() as connection:
            return pd.read_sql(query, connection)
    finally:
        engine.dispose()


def _from_server(client: MlflowClient, runs: Iterable[Run]) -> pd.DataFrame:
    rows = [
        (run.info.run_id, m.key, m.step, m.value, m.timestamp)
        for run in runs
        for key in run.data.metrics
        for m in client.get_metric_history(run.info.run_id, key)
    ]
    return pd.DataFrame(rows, columns=["run", "metric", "step", "value", "timestamp"])


def completions_frame(tracking: Tracking, run_id: str) -> pd.DataFrame:
    """The completions that a run logged: update, prompt, completion, answer, reward, ended; empty if none."""
    client, _ = open_store(tracking)
    with tempfile.TemporaryDirectory() as folder:
        try:
            table: dict[str, Any] = json.loads(
                Path(client.download_artifacts(run_id, "completions.json", folder)).read_text()
            )
        except Exception:  # the store's own kinds of "not there"
            return pd.DataFrame(columns=["update", "prompt", "completion", "answer", "reward", "ended"])
    return pd.DataFrame(table["data"], columns=table["columns"])
