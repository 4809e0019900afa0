"""The MLflow store of runs: its address, its opening, and the names that its writer and its readers share."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # with the password of a server's address
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # MLflow's 7 take 12 minutes; what fails is sent later
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
os.environ.setdefault("PGCONNECT_TIMEOUT", "15")
os.environ.setdefault("PGOPTIONS", "-c statement_timeout=15000")  # a table that is locked holds up no run

import pyarrow as pa
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from omegaconf import MISSING

from bakeoff.errors import UserError, first_line, redacted
from bakeoff.ranges import count

SQLITE = "sqlite:///"
LOCKED = 2.0  # seconds after which a SQLite file counts as locked
METRICS = "metrics.parquet"  # the artifact that holds an ended run's metrics, so that a report reads one file a run
COMPLETIONS, HELDOUT = "completions.json", "heldout.json"  # tables of training and of held-out completions, over time
OUT_OF_MEMORY, DIVERGED = "out of memory", "diverged"  # the tag `outcome` of a run that ended so
# parameters outside of `config_id`: runs that differ in them alone are of one arm
NOT_IN_CONFIG_ID = {
    *("seed", "arm", "study", "tuned", "tracking", "checkpoint"),
    *("device", "threads", "processes", "shard", "deterministic", "memory_limit_mb", "hardware", "price"),
    *("engine.url", "engine.folder"),
}

for noisy in ("alembic", "mlflow"):
    logging.getLogger(noisy).setLevel(logging.ERROR)


@dataclass
class Tracking:
    """Where a run is logged.

    uri                 address of the MLflow store
    experiment          name of the experiment in the store
    completions_every   number of updates between two tables of completions
    completions_rows    number of rows of such a table
    show_completion     show a prompt and its completion of the last update beside the progress
    system_metrics      log the use of processors, memory, disk and network every ten seconds, as MLflow does
    register_model      name under which the trained actor becomes a version in MLflow's model registry; empty: none
    """

    uri: str = MISSING
    experiment: str = "bakeoff"
    completions_every: int = count(25, least=1, unit="updates")
    completions_rows: int = count(16, least=1, unit="rows")
    show_completion: bool = False
    system_metrics: bool = False
    register_model: str = ""


def defines_arm(key: str) -> bool:
    """Whether a parameter, by its dotted key, is part of `config_id`."""
    return not {key, key.split(".")[0]} & NOT_IN_CONFIG_ID


def store_uri(tracking: Tracking) -> str:
    """The store's address; a relative sqlite file is taken from the working directory."""
    if tracking.uri.startswith(SQLITE):
        return SQLITE + str(Path(tracking.uri.removeprefix(SQLITE)).expanduser().resolve())
    return tracking.uri


def open_store(tracking: Tracking) -> tuple[MlflowClient, str]:
    """A client and the id of the experiment, made if it is new; raises UserError where that fails."""
    uri = store_uri(tracking)
    logging.disable(logging.INFO)  # a new sqlite store prints each of its migrations
    database = Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None
    try:
        # Two runs that open a new sqlite store at once would both migrate it.
        with FileLock(f"{database}.lock") if database else nullcontext():
            if database and not database.exists():
                make_database(database)
            client = MlflowClient(tracking_uri=uri)
            artifacts = (database.parent / "mlartifacts").as_uri() if database else None
            return client, experiment_id(client, tracking.experiment, artifacts)
    except Exception as error:  # sqlalchemy, OS, HTTP: whatever the store is made of
        raise UserError(
            f"tracking.uri is '{redacted(tracking.uri)}', which cannot be written ({first_line(error)}); it may be "
            "sqlite:///FILE in a folder that is writable, or the address of an MLflow server (MLFLOW_TRACKING_URI sets "
            "it too)."
        ) from None
    finally:
        logging.disable(logging.NOTSET)


def experiment_id(client: MlflowClient, name: str, artifacts: str | None) -> str:
    """The experiment of this name, restored where it was deleted; new, with that place for artifacts, if there is none.

    Jobs that start at once make it at once: the store takes the first, the others find it.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        kind = {"mlflow.experimentKind": "custom_model_development"}  # not an application with traces
        try:
            return str(client.create_experiment(name, artifacts, tags=kind))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)
            if found is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def make_database(database: Path) -> None:
    """Makes an empty SQLite store beside and renames it: one that is half made, as after a kill, is never opened."""
    partial = database.with_name(f".{database.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    MlflowClient(tracking_uri=f"{SQLITE}{partial}").search_experiments(max_results=1)
    partial.rename(database)


def require_database(path: Path) -> None:
    """Raises an error if a SQLite file was deleted, or stays locked.

    MLflow would go on writing to a deleted file that it has opened, and waits a minute for one that is locked.
    """
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", timeout=LOCKED, uri=True)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.rollback()


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run of the store that has this id, none where there is none, or where it is deleted."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def metric_history(client: MlflowClient, run: Run) -> pa.Table:
    """Every metric of a run, by the store's public API: columns metric, step and value, sorted by metric and step.

    A resumed run logs the steps after its checkpoint twice; the later value counts.
    """
    values: dict[tuple[str, int], float] = {}
    for name in run.data.metrics:
        points = client.get_metric_history(run.info.run_id, name)
        values |= {(name, point.step): point.value for point in sorted(points, key=lambda point: point.timestamp)}
    return metrics_table(values)


def metrics_table(values: Mapping[tuple[str, int], float]) -> pa.Table:
    """Values by metric and step as a table with columns metric, step and value, sorted by metric and step."""
    keys = sorted(values)
    columns = {
        "metric": pa.array([metric for metric, _ in keys], pa.string()).dictionary_encode(),
        "step": pa.array([step for _, step in keys], pa.int64()),
        "value": pa.array([values[key] for key in keys], pa.float64()),
    }
    return pa.table(columns)
