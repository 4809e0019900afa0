"""Runs in MLflow: one run a job, under its sweep's parent run. The store's only writer."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # with the password of a server's address
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # MLflow's 7 take 12 minutes; what fails is sent later
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
os.environ.setdefault("PGCONNECT_TIMEOUT", "15")
os.environ.setdefault("PGOPTIONS", "-c statement_timeout=15000")  # a table that is locked holds up no run

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from omegaconf import MISSING

from bakeoff.errors import UserError, first_line, redacted
from bakeoff.files import replace_text
from bakeoff.outbox import LOG, LOST, SENT, Entry, Outbox, read_entries, read_sent
from bakeoff.paths import ROOT
from bakeoff.ranges import count

SQLITE = "sqlite:///"
PATIENCE = 15.0  # seconds for which a run's end waits for a store that fails
LOCKED = 2.0  # seconds after which a SQLite file counts as locked
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # of an entry, which the store will never take
MISSHAPEN = (TypeError, KeyError, AttributeError)  # errors of an entry that is no entry of ours
ACTOR = "actor"  # the artifact folder of a registered actor
LOCAL_UI = "http://127.0.0.1:5000"  # where `make ui` and `mlflow ui` answer, unless they are given another port
BY_ARM = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "arm"}]}  # as the UI reads it
CURVES = "eval/greedy_accuracy|reward/mean|kl/reference_k3_per_sequence|memory/peak_mb"  # that its charts show first
METRICS = "metrics.parquet"  # the artifact that holds an ended run's metrics, so that a report reads one file a run
COMPLETIONS, HELDOUT = "completions.json", "heldout.json"  # tables of training and of held-out completions, over time
OUT_OF_MEMORY, DIVERGED = "out of memory", "diverged"  # the tag `outcome` of a run that ended so
# parameters outside of `config_id`: runs that differ in them alone are of one arm
NOT_IN_CONFIG_ID = (
    *("seed", "arm", "study", "tuned", "tracking", "checkpoint"),
    *("device", "threads", "processes", "shard", "deterministic", "memory_limit_mb", "hardware", "price"),
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


@dataclass
class Tracker:
    """Writes one MLflow run, by the outbox in the run's folder.

    uri      of the store
    experiment   id of the experiment that the run is in
    new      whether the run was made for this tracker, not resumed
    ended    whether the run has ended, and only what is unsent is sent
    report   receives a message when the store fails
    command  command that sends the entries that are unsent in the end; none where no command does
    """

    client: MlflowClient
    run_id: str
    folder: Path
    uri: str
    experiment: str = ""
    new: bool = True
    ended: bool = False
    report: Callable[[str], None] = lambda message: None
    command: str = ""

    def __post_init__(self) -> None:
        store, begun = redacted(self.uri), not self.new
        self._outbox = Outbox(self.folder, self.run_id, store, self._send, self.report, begun, self.ended)

    def metrics(self, values: dict[str, float], step: int) -> None:
        """All metrics of a step."""
        now = int(time.time() * 1000)
        self._outbox.add({"metrics": [[name, float(value), now, step] for name, value in values.items()]})

    def params(self, values: dict[str, Any]) -> None:
        """Parameters, at most 100 an entry, which is MLflow's limit."""
        texts = [(key, redacted(str(value))[:5000]) for key, value in values.items()]
        for start in range(0, len(texts), 100):
            self._outbox.add({"params": dict(texts[start : start + 100])})

    def tags(self, values: dict[str, str]) -> None:
        """Tags; a later value replaces an earlier one."""
        self._outbox.add({"tags": {key: redacted(value) for key, value in values.items()}})

    def table(self, rows: list[dict[str, Any]], name: str) -> None:
        """Appends rows to a table that the MLflow UI shows; a resumed run replaces what it logs again.

        The first column counts up. The file in the run's folder is what is appended to: MLflow's own `log_table` reads
        the store, through pandas, which makes a number of a text of digits: 0123 becomes 123.
        """
        columns, path = list(rows[0]), self.folder / name
        try:
            held = json.loads(path.read_text())
            earlier = (
                [row for row in held["data"] if row[0] < rows[0][columns[0]]] if held["columns"] == columns else []
            )
        except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged: a table is no reason to stop
            earlier = []
        data = earlier + [[row[key] for key in columns] for row in rows]
        try:
            replace_text(path, json.dumps({"columns": columns, "data": data}))
        except OSError as error:
            return self._outbox.fails(f"{path} cannot be written ({error.strerror})")
        self.artifact(path)
        self.tags({"mlflow.loggedArtifacts": json.dumps([{"path": name, "type": "table"}])})

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """A file in the run's folder, or every file of a folder there, which must stay until it is sent."""
        self._outbox.add({"artifact": [os.path.relpath(path, self.folder), folder]})

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """The dataset that the run reads, for a context: training or evaluation."""
        named = {
            "name": name[:500],
            "digest": digest[:36],
            "source_type": "local",
            "source": json.dumps({"uri": source}),
        }
        self._outbox.add({"dataset": [named, context]})

    def register(self, actor: Path, name: str) -> None:
        """Makes an actor, a folder that transformers opens, the next version of a model in the store's registry.

        `mlflow.artifacts.download_artifacts("models:/NAME/VERSION")` is such a folder again.
        """
        self.artifact(actor, ACTOR)
        self._outbox.add({"register": name})

    @contextmanager
    def system_metrics(self, wanted: bool) -> Iterator[None]:
        """Logs the use of the machine while it is open, in a thread of MLflow's."""
        if not wanted:
            yield
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(self.run_id, resume_logging=not self.new, tracking_uri=self.uri)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def page(self) -> str:
        """Address of the run in the MLflow UI."""
        return ui_page(self.uri, f"{self.experiment}/runs/{self.run_id}")

    def charts(self) -> str:
        """Address of the curves of the run's children, a line for each arm, in the MLflow UI."""
        state = {"searchFilter": f"tags.`mlflow.parentRunId` = '{self.run_id}'", "groupBy": BY_ARM}
        key = self.run_id[:8]
        with suppress(Exception):  # whatever the store is made of: the charts are a convenience
            tag = json.dumps(state | {"chartsSearchFilter": CURVES})
            self.client.set_experiment_tag(self.experiment, f"mlflow.sharedViewState.{key}", tag)
        return ui_page(self.uri, f"{self.experiment}/runs", viewStateShareKey=key, compareRunsMode="CHART")

    def flush(self, patience: float = 0.0) -> bool:
        """Sends what waits; returns whether the store has everything. See `Outbox.flush`."""
        return self._outbox.flush(patience)

    def _send(self, entry: Entry, number: int) -> None:
        """Sends an entry, the last of this number; one that the store will never take is reported and left out."""
        if self.uri.startswith(SQLITE):
            require_database(Path(self.uri.removeprefix(SQLITE)))
        try:
            deliver(self.client, self.run_id, entry, self.folder, number)
        except Exception as error:
            if "artifact" in entry:
                self.client.get_run(self.run_id)  # raises where the store is away, so that the file is sent later
            elif getattr(error, "error_code", "") not in REFUSALS and not isinstance(error, MISSHAPEN):
                raise
            self.report(f"the store refused {str(entry)[:80]} ({first_line(error)})")

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
            self._outbox.add({"end": status})
            if not self.flush(PATIENCE):
                waiting = f"{len(self._outbox)} entries are unsent, and wait in {self.folder / LOG}."
                again = f" To send them, type: {self.command}" if self.command else ""
                print(redacted(f"bakeoff: {self._outbox.problem}; {waiting}{again}"), file=sys.stderr)


def require_database(path: Path) -> None:
    """Raises an error if a SQLite file was deleted, or stays locked.

    MLflow would go on writing to a deleted file that it has opened, and waits a minute for one that is locked.
    """
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", timeout=LOCKED, uri=True)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.rollback()


def deliver(client: MlflowClient, run_id: str, entry: Entry, folder: Path, number: int) -> None:
    """Sends one entry, the last of this number, to the store; raises whatever the store raises."""
    (kind, value), *_ = entry.items()
    match kind:
        case "metrics":
            metrics = [Metric(*point) for point in value]
            for start in range(0, len(metrics), 1000):  # MLflow's limit
                client.log_batch(run_id, metrics=metrics[start : start + 1000])
        case "params":
            client.log_batch(run_id, params=[Param(key, text) for key, text in value.items()])
        case "tags" if value:
            client.log_batch(run_id, tags=[RunTag(key, text) for key, text in value.items()])
        case "artifact":
            path, at = folder / value[0], value[1]
            if not all(each.resolve().is_relative_to(folder.resolve()) for each in chain([path], path.rglob("*"))):
                raise PermissionError("it is outside of the run's folder")  # which may come from anyone
            if path.is_dir():
                client.log_artifacts(run_id, str(path), at)
            elif path.is_file():
                client.log_artifact(run_id, str(path), at)
        case "dataset":
            dataset, context = value
            tags = [InputTag("mlflow.data.context", context)]
            client.log_inputs(run_id, [DatasetInput(Dataset(**dataset), tags)])
        case "register":
            register_version(client, run_id, value)
        case "end":
            table = all_metrics(client, run_id, read_entries(folder / LOG), number)
            if len(table):
                with tempfile.TemporaryDirectory() as temporary:  # the run's folder may be full
                    pq.write_table(table, path := f"{temporary}/{METRICS}")
                    client.log_artifact(run_id, path)
            client.set_terminated(run_id, value)


def register_version(client: MlflowClient, run_id: str, name: str) -> None:
    """Makes the run's actor a version of the registered model `name`, once."""
    with suppress(MlflowException):  # it is there already
        client.create_registered_model(name)
    if not client.search_model_versions(f"run_id = '{run_id}'"):
        client.create_model_version(name, f"{client.get_run(run_id).info.artifact_uri}/{ACTOR}", run_id)


def ui_page(uri: str, path: str, **query: str) -> str:
    """Address in the MLflow UI of a page below its experiments; a store in a file has the UI that `make ui` starts.

    MLflow 3 opens an experiment on traces of applications, unless its address says that models are trained in it.
    """
    server = redacted(uri).rstrip("/") if uri.startswith("http") else LOCAL_UI
    return f"{server}/#/experiments/{path}?{urlencode({'workflowType': 'machine_learning', **query})}"


def all_metrics(client: MlflowClient, run_id: str, entries: list[Entry], number: int) -> pa.Table:
    """Every metric of a run: from its log, or from its store where the log lacks some of that number of entries."""
    if LOST in entries or len(entries) < number:
        return metric_history(client, client.get_run(run_id))
    points = [point for entry in entries for point in entry.get("metrics", [])]
    return metrics_table({(name, step): value for name, value, _, step in points})


def send_unsent(tracking: Tracking, folder: Path) -> int:
    """Sends the entries that a finished run could not send; returns the number of entries that are still unsent."""
    entries = read_entries(folder / LOG)
    try:
        run_id = str(json.loads((folder / SENT).read_text())["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return len(entries)
    if read_sent(folder / SENT, run_id) >= len(entries):
        return 0
    tracker = Tracker(open_store(tracking)[0], run_id, folder, store_uri(tracking), new=False, ended=True)
    tracker.flush(PATIENCE)
    return len(tracker._outbox)


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


def start_run(
    tracking: Tracking,
    name: str,
    tags: dict[str, str],
    folder: Path,
    resume: str | None = None,
    report: Callable[[str], None] = lambda message: None,
    command: str = "",
) -> Tracker:
    """A new run, or the resumed run `resume` where the store has it; a new one gets all that the folder has logged.

    `command` sends the entries that the store does not take. Raises UserError where the store cannot be written.
    """
    client, experiment = open_store(tracking)
    tags = {key: redacted(value) for key, value in tags.items()}
    uri, resumes = store_uri(tracking), resume is not None and has_run(client, resume)
    try:
        if resumes:
            client.update_run(str(resume), status="RUNNING")
            return Tracker(client, str(resume), folder, uri, experiment, new=False, report=report, command=command)
        tags = {"mlflow.runName": name, "mlflow.source.type": "LOCAL", "mlflow.source.name": "bakeoff", **tags}
        run_id = str(client.create_run(experiment, tags=tags).info.run_id)
    except Exception as error:
        raise UserError(
            f"tracking.uri is '{redacted(tracking.uri)}', which does not take a run ({first_line(error)})."
        ) from None
    return Tracker(client, run_id, folder, uri, experiment, report=report, command=command)


def has_run(client: MlflowClient, run_id: str) -> bool:
    """Whether the store has a run, which is not deleted."""
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


def main() -> None:
    """Prints where the MLflow UI, on the port of the argument, shows the runs of this folder and their curves."""
    port = sys.argv[1] if len(sys.argv) > 1 else "5000"
    tracking = Tracking(uri=os.environ.get("MLFLOW_TRACKING_URI", f"{SQLITE}mlflow.db"))
    client, experiment = open_store(tracking)
    state = json.dumps({"groupBy": BY_ARM, "chartsSearchFilter": CURVES})
    client.set_experiment_tag(experiment, "mlflow.sharedViewState.arms", state)
    runs = ui_page(uri := store_uri(tracking), f"{experiment}/runs")
    curves = ui_page(uri, f"{experiment}/runs", viewStateShareKey="arms", compareRunsMode="CHART")
    print(f"runs:   {runs}\ncurves: {curves}".replace(":5000/", f":{port}/"), flush=True)


if __name__ == "__main__":
    main()
