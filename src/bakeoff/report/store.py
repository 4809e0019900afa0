"""Tidy frames from an MLflow store, and nothing but the store."""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import adbc_driver_sqlite.dbapi
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from bakeoff.errors import UserError
from bakeoff.tracking import Tracker, Tracking, open_store, store_uri


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

    Run and metric are categories, since millions of rows name a few of them; rows are in the order of run, metric and
    step. A resumed run writes the steps after its checkpoint twice; the later of the two is kept.
    """
    runs = list(runs)
    uri = store_uri(tracking)
    ids = [run.info.run_id for run in runs]
    if "://" in uri and uri.split("://")[0].split("+")[0] in ("sqlite", "postgresql", "mysql", "mssql"):
        rows = _from_database(uri, ids)
    else:
        rows = _from_server(MlflowClient(tracking_uri=uri), runs)
    rows = rows.cast(ROWS)
    keys = sorted(pc.unique(rows["key"]).to_pylist())
    run = pc.index_in(rows["run_uuid"], pa.array(ids)).to_numpy()
    key = pc.index_in(rows["key"], pa.array(keys)).to_numpy()
    step, value, timestamp, is_nan = (rows[name].to_numpy() for name in ("step", "value", "timestamp", "is_nan"))
    place = (run.astype(np.int64) * len(keys) + key) * (step.max(initial=0) + 1) + step
    order = np.lexsort((timestamp, place))
    kept = order[np.diff(place[order], append=-1) != 0]
    return pd.DataFrame(
        {
            "run": pd.Categorical.from_codes(run[kept], dtype=pd.CategoricalDtype(ids)),
            "metric": pd.Categorical.from_codes(key[kept], dtype=pd.CategoricalDtype(keys)),
            "step": step[kept],
            "value": np.where(is_nan, np.nan, value)[kept],
        }
    )


ROWS = pa.schema(  # of MLflow's table; a NaN is a flagged 0 there
    [
        ("run_uuid", pa.string()),
        ("key", pa.string()),
        ("step", pa.int64()),
        ("value", pa.float64()),
        ("timestamp", pa.int64()),
        ("is_nan", pa.bool_()),
    ]
)


def _from_database(uri: str, run_ids: list[str]) -> pa.Table:
    table = sqlalchemy.table("metrics", *map(sqlalchemy.column, ROWS.names))
    engine = sqlalchemy.create_engine(uri)

    def query(ids: list[str]) -> sqlalchemy.Select[Any]:
        return sqlalchemy.select(table).where(table.c.run_uuid.in_(ids))

    def read(ids: list[str]) -> pa.Table:
        text = str(query(ids).compile(engine, compile_kwargs={"literal_binds": True}))
        with adbc_driver_sqlite.dbapi.connect(engine.url.database) as driver, driver.cursor() as cursor:
            cursor.execute(text)
            return cursor.fetch_arrow_table().cast(ROWS)  # the driver guesses types from what is there, or is not

    if engine.dialect.name == "sqlite":  # by a driver that makes no Python object of a value, on two cores
        with ThreadPoolExecutor() as halves:
            return pa.concat_tables(halves.map(read, (run_ids[::2], run_ids[1::2])))
    with engine.connect() as connection:
        frame = pd.read_sql(query(run_ids), connection)
    engine.dispose()
    return pa.Table.from_pandas(frame, preserve_index=False)


def _from_server(client: MlflowClient, runs: Iterable[Run]) -> pa.Table:
    rows = [
        (run.info.run_id, m.key, m.step, m.value, m.timestamp, math.isnan(m.value))
        for run in runs
        for key in run.data.metrics
        for m in client.get_metric_history(run.info.run_id, key)
    ]
    return pa.table(dict(zip(ROWS.names, zip(*rows, strict=True), strict=True))) if rows else ROWS.empty_table()


def completions_frame(tracking: Tracking, run_id: str) -> pd.DataFrame:
    """The completions that a run logged: update, prompt, completion, answer, reward, ended; empty if none."""
    try:
        table = Tracker(open_store(tracking)[0], run_id).read_table("completions.json")
    except MlflowException:  # a database whose artifacts are behind a server
        table = None
    if table is None:
        return pd.DataFrame(columns=["update", "prompt", "completion", "answer", "reward", "ended"])
    return pd.DataFrame(table["data"], columns=table["columns"])
