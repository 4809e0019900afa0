"""Runs in MLflow: one run a job, under its sweep's parent run. The store's only writer."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from bakeoff.errors import UserError, first_line, redacted
from bakeoff.files import replace_text
from bakeoff.mlflow_store import (
    METRICS,
    SQLITE,
    Tracking,
    find_run,
    metric_history,
    metrics_table,
    open_store,
    require_database,
    store_uri,
)
from bakeoff.outbox import LOG, LOST, Entry, Outbox, read_entries, read_receipt
from bakeoff.signals import open_run, reraising_interrupts
from bakeoff.ui import curves_page, ui_page

PATIENCE = 15.0  # seconds for which a run's end waits for a store that fails
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # of an entry, which the store will never take
MISSHAPEN = (TypeError, KeyError, AttributeError)  # errors of an entry that is no entry of ours
ACTOR = "actor"  # the artifact folder of a registered actor
FOLDER = "folder"  # the tag with the path of a run's folder


@dataclass
class Tracker:
    """Writes one MLflow run, by the outbox in the run's folder.

    uri          address of the store
    experiment   id of the experiment that the run is in
    new          whether the run was made for this tracker, not resumed
    ended        whether the run has ended, and only what is unsent is sent
    report       receives a message when the store fails
    command      command that sends the entries that are unsent in the end; empty where there is none
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
        children = f"tags.`mlflow.parentRunId` = '{self.run_id}'"
        return curves_page(self.client, self.uri, self.experiment, self.run_id[:8], children)

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
            with open_run(), reraising_interrupts():
                yield
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        except BaseException as error:
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            self.tags({"failure": f"{kind}{error}"[:4900]})
            raise
        finally:
            self._outbox.add({"end": status})
            if not self.flush(PATIENCE):
                waiting = f"{len(self._outbox)} entries are unsent, and wait in {self.folder / LOG}."
                again = f" To send them, type: {self.command}" if self.command else ""
                print(redacted(f"bakeoff: {self._outbox.problem}; {waiting}{again}"), file=sys.stderr)


def start_run(
    tracking: Tracking,
    name: str,
    tags: dict[str, str],
    folder: Path,
    resume: str | None = None,
    report: Callable[[str], None] = lambda message: None,
    command: str = "",
) -> Tracker:
    """A new run, or the resumed run `resume`; a new one gets all that the folder has logged.

    A run is resumed where the store has it and its folder is not a copy of another one, which stays that run's.
    `command` sends the entries that the store does not take. Raises UserError where the store cannot be written.
    """
    client, experiment = open_store(tracking)
    tags = {key: redacted(value) for key, value in (tags | {FOLDER: str(folder.resolve())}).items()}
    uri = store_uri(tracking)
    reason = "" if resume is None else not_resumed(client, resume, folder, uri)
    if reason:
        report(f"{reason}; a new run there receives all of its log")
    try:
        if resume and not reason:
            client.update_run(resume, status="RUNNING")
            client.set_tag(resume, FOLDER, tags[FOLDER])
            return Tracker(client, resume, folder, uri, experiment, new=False, report=report, command=command)
        tags = {"mlflow.runName": name, "mlflow.source.type": "LOCAL", "mlflow.source.name": "bakeoff", **tags}
        run_id = str(client.create_run(experiment, tags=tags).info.run_id)
    except Exception as error:
        raise UserError(
            f"tracking.uri is '{redacted(tracking.uri)}', which does not take a run ({first_line(error)})."
        ) from None
    return Tracker(client, run_id, folder, uri, experiment, report=report, command=command)


def not_resumed(client: MlflowClient, run_id: str, folder: Path, uri: str) -> str:
    """Why the run in a folder cannot be resumed in the store; empty where it can."""
    run = find_run(client, run_id)
    if run is None:
        return f"the store {redacted(uri)} does not hold this run"
    original = Path(run.data.tags.get(FOLDER, folder))
    receipt = read_receipt(original)
    if original.resolve() != folder.resolve() and (receipt.run, receipt.store) == (run_id, redacted(uri)):
        return f"the folder '{folder}' is a copy of '{original}', which keeps its run in the store {redacted(uri)}"
    return ""


def send_unsent(tracking: Tracking, folder: Path) -> int:
    """Sends the entries that a finished run could not send; returns the number of entries that are still unsent."""
    entries, receipt = read_entries(folder / LOG), read_receipt(folder)
    if not receipt.run or receipt.lines >= len(entries):
        return max(len(entries) - receipt.lines, 0)
    tracker = Tracker(open_store(tracking)[0], receipt.run, folder, store_uri(tracking), new=False, ended=True)
    tracker.flush(PATIENCE)
    return len(tracker._outbox)


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


def all_metrics(client: MlflowClient, run_id: str, entries: list[Entry], number: int) -> pa.Table:
    """Every metric of a run: from its log, or from its store where the log lacks some of that number of entries."""
    if LOST in entries or len(entries) < number:
        return metric_history(client, client.get_run(run_id))
    points = [point for entry in entries for point in entry.get("metrics", [])]
    return metrics_table({(name, step): value for name, value, _, step in points})
