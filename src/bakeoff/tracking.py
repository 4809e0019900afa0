"""Runs in MLflow: one run a job, under its sweep's parent run. The store's only writer."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from omegaconf import MISSING

from bakeoff.errors import UserError
from bakeoff.paths import ROOT
from bakeoff.ranges import count

SQLITE = "sqlite:///"
METRICS = "metrics.parquet"  # the artifact that holds an ended run's metrics, so that a report reads one file a run
OUT_OF_MEMORY, DIVERGED = "out of memory", "diverged"  # the tag `outcome` of a run that ended so
# parameters outside of `config_id`: runs that differ in them alone are of one arm
NOT_IN_CONFIG_ID = (
    *("seed", "arm", "study", "tuned", "tracking", "checkpoint"),
    *("device", "threads", "deterministic", "memory_limit_mb"),
)

for noisy in ("alembic", "mlflow"):
    logging.getLogger(noisy).setLevel(logging.ERROR)


@dataclass
class Tracking:
    """Where a run is logged.

    uri                 address of the MLflow store
    experiment          name of the experiment in the store
    completions_every   number of updates between two tables of completions
    completions_rows    number of rows of such a table
    """

    uri: str = MISSING
    experiment: str = "bakeoff"
    completions_every: int = count(25, least=1, unit="updates")
    completions_rows: int = count(16, least=1, unit="rows")


@dataclass
class Tracker:
    """Writes one MLflow run. Metrics wait for up to a second and go together: a call costs some 10 ms on sqlite."""

    client: MlflowClient
    run_id: str
    new: bool = True
    _waiting: list[Metric] = field(default_factory=list)
    _flushed: float = 0.0

    def metrics(self, values: dict[str, float], step: int) -> None:
        """All metrics of a step."""
        now = time.time()
        self._waiting += [Metric(name, value, int(now * 1000), step) for name, value in values.items()]
        if now - self._flushed > 1:
            self.flush()

    def flush(self) -> None:
        """Writes the waiting metrics, at most 1000 per call, which is MLflow's limit."""
        for start in range(0, len(self._waiting), 1000):
            self.client.log_batch(self.run_id, metrics=self._waiting[start : start + 1000])
        self._waiting, self._flushed = [], time.time()

    def params(self, values: dict[str, Any]) -> None:
        """Writes parameters, at most 100 per call, which is MLflow's limit."""
        params = [Param(key, str(value)[:5000]) for key, value in values.items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(self.run_id, params=params[start : start + 100])

    def tags(self, values: dict[str, str]) -> None:
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in values.items()])

    def table(self, rows: list[dict[str, Any]], name: str) -> None:
        """Appends rows to a table that the MLflow UI shows; a resumed run replaces what it logs again.

        The first column counts up. MLflow's own `log_table` appends through pandas, which makes a number of a text of
        digits: 0123 becomes 123.
        """
        columns = list(rows[0])
        held = self.read_table(name)
        earlier = [row for row in held["data"] if row[0] < rows[0][columns[0]]] if held else []
        data = earlier + [[row[key] for key in columns] for row in rows]
        self.client.log_text(self.run_id, json.dumps({"columns": columns, "data": data}), name)
        self.tags({"mlflow.loggedArtifacts": json.dumps([{"path": name, "type": "table"}])})

    def read_table(self, name: str) -> dict[str, Any] | None:
        """A table that was logged, as columns and data; none where there is none."""
        if name not in {file.path for file in self.client.list_artifacts(self.run_id)}:
            return None
        with tempfile.TemporaryDirectory() as folder:
            path = self.client.download_artifacts(self.run_id, name, folder)
            table: dict[str, Any] = json.loads(Path(path).read_text())
            return table

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self.client.log_artifact(self.run_id, str(path), folder)

    def artifacts(self, source: Path, folder: str) -> None:
        """Every file of a folder."""
        self.client.log_artifacts(self.run_id, str(source), folder)

    def metrics_artifact(self) -> None:
        """Writes the run's metrics as the artifact `metrics.parquet`; nothing for a run that logged none."""
        history = metric_history(self.client, self.client.get_run(self.run_id))
        if len(history):
            with tempfile.TemporaryDirectory() as folder:
                pq.write_table(history, path := Path(folder) / METRICS)
                self.artifact(path)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ends the run: FINISHED, FAILED by an exception, KILLED by a signal or an interrupt.

        Its metrics become an artifact first: a run that ended has them all in one file.
        """
        status = "FAILED"
        try:
            yield
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        except BaseException as error:
            self.tags({"failure": f"{type(error).__name__}: {error}"[:4900]})
            raise
        finally:
            self.flush()
            try:
                self.metrics_artifact()
            finally:
                self.client.set_terminated(self.run_id, status)


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
            client = MlflowClient(tracking_uri=uri)
            found = client.get_experiment_by_name(tracking.experiment)
            if found is not None:
                return client, str(found.experiment_id)
            artifacts = (database.parent / "mlartifacts").as_uri() if database else None
            kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens on runs and charts, not traces
            return client, str(client.create_experiment(tracking.experiment, artifacts, tags=kind))
    except Exception as error:  # sqlalchemy, OS, HTTP: whatever the store is made of
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"tracking.uri is '{tracking.uri}', which cannot be written ({reason}); it may be sqlite:///FILE in a "
            "folder that is writable, or the address of an MLflow server (MLFLOW_TRACKING_URI sets it too)."
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def start_run(tracking: Tracking, name: str, tags: dict[str, str], resume: str | None = None) -> Tracker:
    """A new run, or the resumed run `resume` where the store has it: else a new run holds what is still to come."""
    client, experiment = open_store(tracking)
    if resume is not None and has_run(tracking, resume):
        client.update_run(resume, status="RUNNING")
        return Tracker(client, resume, new=False)
    tags = {"mlflow.runName": name, "mlflow.source.type": "LOCAL", "mlflow.source.name": "bakeoff", **tags}
    return Tracker(client, str(client.create_run(experiment, tags=tags).info.run_id))


def has_run(tracking: Tracking, run_id: str) -> bool:
    """Whether the store has a run, which is not deleted."""
    client, _ = open_store(tracking)
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return False
        raise


def commit() -> str:
    """The checkout's commit, `-dirty` where it has changes; empty outside of a checkout."""
    try:
        described = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return described.stdout.strip()
