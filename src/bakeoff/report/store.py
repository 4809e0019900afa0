"""A study's frames from an MLflow store, by MLflow's public API alone: a file, a database and a server read alike."""

from __future__ import annotations

import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from bakeoff.errors import UserError
from bakeoff.report.naming import arm_names
from bakeoff.report.study import Study
from bakeoff.tracking import METRICS, NOT_IN_CONFIG_ID, Tracking, metric_history, open_store

DOWNLOADS = 8  # at once: from a server, most of the time is waiting
MOST = 50_000  # runs of a search: MLflow's own limit
COMPLETIONS = ["update", "prompt", "completion", "answer", "reward", "ended"]


def default_tracking() -> Tracking:
    """The store that MLFLOW_TRACKING_URI names, or mlflow.db in the working directory."""
    return Tracking(uri=os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"))


def load_study(name: str, tracking: Tracking | None = None, where: str = "", sweeps: int = 1) -> Study:
    """Reads a study's newest sweeps as one; raises UserError where there is none, or no run of it has finished.

    `where` selects runs: a pandas expression over the columns of `Study.runs` (name, algorithm, seed and other tags).
    If several runs have the same arm and seed, as in a resumed sweep, the last is used.
    """
    tracking = tracking or default_tracking()
    client, experiment = open_store(tracking)
    is_sweep, newest_first = f"tags.study = '{name}' and tags.kind = 'sweep'", "attributes.start_time DESC"
    parents = client.search_runs([experiment], is_sweep, order_by=[newest_first], max_results=sweeps)
    if not parents:
        raise UserError(
            f"the store '{tracking.uri}' holds no run of the study '{name}'; "
            f"`bakeoff sweeps={name}` makes one, and MLFLOW_TRACKING_URI selects another store."
        )
    jobs: list[Run] = []
    for parent in reversed(parents):
        is_job = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        jobs += client.search_runs([experiment], is_job, order_by=["attributes.start_time ASC"], max_results=MOST)
    if not any(run.info.status == "FINISHED" for run in jobs):
        raise UserError(
            f"no run of the study '{name}' has finished; rerun its command with hydra.sweep.dir=… to resume."
        )
    runs = runs_frame(jobs).drop_duplicates(["config_id", "seed"], keep="last").reset_index(drop=True)
    runs["name"] = arm_names(runs)
    runs = select(runs, where) if where else runs
    ended = runs["status"] == "FINISHED"
    finished, unfinished = runs[ended].reset_index(drop=True), runs[~ended].reset_index(drop=True)
    by_id = {run.info.run_id: run for run in jobs}
    kept = [by_id[run] for run in finished["run"]]
    return Study(
        name=name,
        question=parents[0].data.tags.get("question", ""),
        run=parents[0].info.run_id,
        runs=finished,
        unfinished=unfinished,
        params=params_frame(kept),
        metrics=metrics_frame(client, kept, finished),
        completions=completions_frame(client, finished),
    )


def runs_frame(runs: list[Run]) -> pd.DataFrame:
    """One row per run: run, status, and its tags (`config_id`, `algorithm`, `seed`, …); a missing tag is empty."""
    frame = pd.DataFrame([{"run": r.info.run_id, "status": r.info.status, **r.data.tags} for r in runs])
    return frame.loc[:, ~frame.columns.str.contains("mlflow.", regex=False)].fillna("").astype({"seed": int})


def select(runs: pd.DataFrame, where: str) -> pd.DataFrame:
    """The runs for which an expression is true; raises UserError if it is invalid or no finished run is left."""
    try:
        kept = runs.query(where).reset_index(drop=True)
    except Exception as error:  # pandas raises many types
        columns = ", ".join(sorted(column for column in runs.columns if column.isidentifier()))
        raise UserError(
            f"where is '{where}', which is invalid ({error}); it is an expression over {columns}."
        ) from error
    if not (kept["status"] == "FINISHED").any():
        names = ", ".join(runs["name"].unique())
        raise UserError(f"where is '{where}', which no finished run satisfies; the names are {names}.")
    return kept


def params_frame(runs: list[Run]) -> pd.DataFrame:
    """Columns run, key, value, in_config_id: every parameter of every run, and whether it defines the arm.

    A resumed run may change a parameter, which MLflow cannot; a tag holds its last value.
    """
    rows = [
        (run.info.run_id, key, run.data.tags.get(f"changed.{key}", value))
        for run in runs
        for key, value in run.data.params.items()
    ]
    frame = pd.DataFrame(rows, columns=["run", "key", "value"])
    return frame.assign(in_config_id=~frame["key"].str.split(".").str[0].isin(NOT_IN_CONFIG_ID))


def metrics_frame(client: MlflowClient, runs: list[Run], named: pd.DataFrame) -> pd.DataFrame:
    """Columns run, metric, step, value, name, seed: every metric of every run, sorted by run, metric and step.

    Run, metric and name are categories, since millions of rows share a few values.
    """
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        tables = list(pool.map(lambda run: run_metrics(client, run), runs))
    of_run = np.repeat(np.arange(len(runs)), [len(table) for table in tables])
    frame: pd.DataFrame = pa.concat_tables(tables).unify_dictionaries().to_pandas()
    arms = pd.Categorical(named["name"], categories=named["name"].unique())
    return frame.assign(
        run=pd.Categorical.from_codes(of_run, categories=pd.Index(named["run"])),
        name=pd.Categorical.from_codes(arms.codes[of_run], dtype=arms.dtype),
        seed=named["seed"].to_numpy()[of_run],
    )


def run_metrics(client: MlflowClient, run: Run) -> pa.Table:
    """Metric, step and value of a run: from its artifact if it has ended and left one, else from the store.

    A running run may hold the artifact of an earlier session that it resumes, so that one is never read. An artifact on
    this machine is read where it is, another is downloaded.
    """
    if run.info.status == "RUNNING":
        return metric_history(client, run)
    location = urlparse(run.info.artifact_uri)
    try:
        if location.scheme in ("", "file"):
            return pq.read_table(Path(url2pathname(location.path)) / METRICS, use_threads=False)
        with tempfile.TemporaryDirectory() as folder:
            return pq.read_table(client.download_artifacts(run.info.run_id, METRICS, folder), use_threads=False)
    except (MlflowException, OSError, pa.ArrowException):  # damaged, left out by a kill, or out of our reach
        return metric_history(client, run)


def completions_frame(client: MlflowClient, runs: pd.DataFrame) -> pd.DataFrame:
    """The last completions that each arm logged, of its lowest seed: name, seed, and the columns of COMPLETIONS."""
    frames = [pd.DataFrame(columns=["name", "seed", *COMPLETIONS])]
    for _, run in runs.sort_values("seed", kind="stable").drop_duplicates("name").sort_index().iterrows():
        try:
            with tempfile.TemporaryDirectory() as folder:
                table = json.loads(Path(client.download_artifacts(run["run"], "completions.json", folder)).read_text())
            rows = pd.DataFrame(table["data"], columns=table["columns"])[COMPLETIONS]
        except (MlflowException, OSError, ValueError, KeyError, TypeError):  # none, out of our reach, or damaged
            continue
        frames.append(rows[rows["update"] == rows["update"].max()].assign(name=run["name"], seed=run["seed"]))
    return pd.concat(frames, ignore_index=True)
