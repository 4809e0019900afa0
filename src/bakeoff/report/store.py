"""Tidy frames from an MLflow store, and nothing but the store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from bakeoff.config import Tracking
from bakeoff.errors import UserError
from bakeoff.tracking import Tracker, open_store, store_uri


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

    Run and metric are categories, since millions of rows name a few of them. A resumed run writes the steps after its
    checkpoint twice; the later of the two is kept.
    """
    runs = list(runs)
    uri = store_uri(tracking)
    ids = [run.info.run_id for run in runs]
    keys = sorted({key for run in runs for key in run.data.metrics})
    if "://" in uri and uri.split("://")[0].split("+")[0] in ("sqlite", "postgresql", "mysql", "mssql"):
        chunks = _from_database(uri, ids)
    else:
        chunks = _from_server(MlflowClient(tracking_uri=uri), runs)
    run_codes, key_codes = ({name: code for code, name in enumerate(names)} for names in (ids, keys))
    parts = [np.empty((5, 0))]
    for rows in chunks:
        run, key, step, value, timestamp = zip(*rows, strict=True)
        codes = [run_codes[each] for each in run], [key_codes[each] for each in key]
        parts.append(np.array([*codes, step, value, timestamp], float))  # integers below 2^53 are exact in it
    columns = np.concatenate(parts, axis=1)
    run_code, key_code, step = columns[:3].astype(int)
    place = (run_code * len(keys) + key_code) * (step.max(initial=0) + 1) + step
    order = np.lexsort((columns[4], place))
    kept = order[np.diff(place[order], append=-1) != 0]
    return pd.DataFrame(
        {
            "run": pd.Categorical.from_codes(run_code[kept], dtype=pd.CategoricalDtype(ids)),
            "metric": pd.Categorical.from_codes(key_code[kept], dtype=pd.CategoricalDtype(keys)),
            "step": step[kept],
            "value": columns[3][kept],
        }
    )


Rows = Sequence[Any]  # run, metric, step, value, timestamp
CHUNK = 500  # rows: Python's garbage collector goes through all that exist at once


def _from_database(uri: str, run_ids: list[str]) -> Iterator[Rows]:
    import sqlalchemy

    names = ("run_uuid", "key", "step", "value", "timestamp", "is_nan")
    table = sqlalchemy.table("metrics", *map(sqlalchemy.column, names))
    value = sqlalchemy.case((table.c.is_nan, None), else_=table.c.value)  # a store's NaN is a flagged 0
    query = sqlalchemy.select(table.c.run_uuid, table.c.key, table.c.step, value, table.c.timestamp)
    engine = sqlalchemy.create_engine(uri)
    try:
        with engine.connect() as connection:
            result = connection.execute(query.where(table.c.run_uuid.in_(run_ids)))
            while rows := result.cursor.fetchmany(CHUNK):  # the driver's: SQLAlchemy's rows take half the time
                yield rows
    finally:
        engine.dispose()


def _from_server(client: MlflowClient, runs: Iterable[Run]) -> Iterator[Rows]:
    for run in runs:
        for key in run.data.metrics:
            yield [
                (run.info.run_id, m.key, m.step, m.value, m.timestamp)
                for m in client.get_metric_history(run.info.run_id, key)
            ]


def completions_frame(tracking: Tracking, run_id: str) -> pd.DataFrame:
    """The completions that a run logged: update, prompt, completion, answer, reward, ended; empty if none."""
    try:
        table = Tracker(open_store(tracking)[0], run_id).read_table("completions.json")
    except MlflowException:  # a database whose artifacts are behind a server
        table = None
    if table is None:
        return pd.DataFrame(columns=["update", "prompt", "completion", "answer", "reward", "ended"])
    return pd.DataFrame(table["data"], columns=table["columns"])
