"""A study's frames from an MLflow store, by MLflow's public API alone: a file, a database and a server read alike."""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from bakeoff.errors import UserError, first_line, redacted
from bakeoff.mlflow_store import (
    COMPLETIONS,
    HELDOUT,
    METRICS,
    SQLITE,
    Tracking,
    metric_history,
    metrics_table,
    open_store,
)
from bakeoff.paths import near
from bakeoff.report.complete import with_complete_runs
from bakeoff.report.naming import UNSHOWN, arm_names, labels, one_line, overrides
from bakeoff.report.statistics import counted
from bakeoff.report.study import Study, read_study

DOWNLOADS = 8  # at once: from a server, most of the time is waiting
MOST = 50_000  # runs of a search: MLflow's own limit
COLUMNS = ["update", "prompt", "completion", "answer", "reward", "ended"]  # of a table of completions
IDENTITY = ("config_id", "algorithm", "seed")  # tags without which a run is of no arm
OTHER_TAGS = ("overrides", "start", "tuned", "model")  # that a page reads, and a run of another version may lack


def default_tracking() -> Tracking:
    """The store that MLFLOW_TRACKING_URI names, or mlflow.db in the working folder, or beside analysis/: see `near`."""
    return Tracking(uri=os.environ.get("MLFLOW_TRACKING_URI", f"{SQLITE}{near('mlflow.db')}"))


def is_there(tracking: Tracking) -> bool:
    """Whether the store exists, as far as its address alone says: reading it makes none."""
    return not tracking.uri.startswith(SQLITE) or Path(tracking.uri.removeprefix(SQLITE)).exists()


def find_study(folder: Path | str) -> Study:
    """A study for a notebook: from the folder of its report, else by the folder's name from the store; see `near`."""
    place = near(folder)
    return read_study(place) if (place / "study.json").is_file() else load_study(place.name)


def load_study(name: str, tracking: Tracking | None = None, where: str = "", sweeps: int = 1) -> Study:
    """Reads a study's newest sweeps as one; raises UserError where there is none, or no run of it has finished.

    `where` selects runs: a pandas expression over the columns of `Study.runs` (name, algorithm, seed and other tags).
    Of several runs with the same arm and seed, as of several sweeps, the last that finished is used.
    """
    tracking = tracking or default_tracking()
    parents: list[Run] = []
    if is_there(tracking):
        client, experiment = open_store(tracking)
        is_sweep, newest_first = f"tags.study = '{name}' and tags.kind = 'sweep'", "attributes.start_time DESC"
        parents = client.search_runs([experiment], is_sweep, order_by=[newest_first], max_results=sweeps)
    if not parents:
        raise UserError(
            f"the store '{redacted(tracking.uri)}' holds no run of the study '{name}'; "
            f"`bakeoff sweeps={name}` makes one; MLFLOW_TRACKING_URI selects another store."
        )
    found: list[Run] = []
    for parent in reversed(parents):
        is_job = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        in_order = ["attributes.start_time ASC"]
        found += client.search_runs([experiment], is_job, ViewType.ALL, order_by=in_order, max_results=MOST)
    faults = {run.info.run_id: fault(run) for run in found}
    jobs = [run for run in found if not faults[run.info.run_id]]
    notes = [
        f"run {one_line(run.info.run_name)}: {faults[run.info.run_id]}" for run in found if faults[run.info.run_id]
    ]
    if not any(run.info.status == "FINISHED" for run in jobs):
        unusable = f" ({len(notes)} others cannot be read; the first, {notes[0]})" if notes else ""
        raise UserError(
            f"no run of the study '{name}' has finished{unusable}; rerun its command with hydra.sweep.dir=… to resume."
        )
    every = runs_frame(jobs)
    finished_last = every.assign(finished=every["status"] == "FINISHED").sort_values("finished", kind="stable")
    runs = every.loc[sorted(finished_last.drop_duplicates(["config_id", "seed"], keep="last").index)]
    if len(runs) < len(every):
        notes.append(f"{counted(len(every) - len(runs), 'run')}: another run of the same arm and seed is used")
    runs = runs.reset_index(drop=True)
    runs["name"] = arm_names(runs)
    cut = runs[[overrides(each) is None for each in runs["overrides"]]]
    notes += [f"the settings of {each}: the tag overrides is damaged" for each in labels(cut)]
    runs = select(runs, where) if where else runs
    ended = runs["status"] == "FINISHED"
    finished, unfinished = runs[ended].reset_index(drop=True), runs[~ended].reset_index(drop=True)
    by_id = {run.info.run_id: run for run in jobs}
    kept = [by_id[run] for run in finished["run"]]
    damaged: list[str] = []
    study = Study(
        name=name,
        question=one_line(parents[0].data.tags.get("question", "")),
        run=parents[0].info.run_id,
        command="\n".join(map(one_line, parents[0].data.tags.get("command", "").splitlines())),
        report=report_command(name, where, sweeps),
        runs=finished,
        unfinished=unfinished,
        params=params_frame(kept),
        metrics=metrics_frame(client, kept, finished, damaged),
        completions=completions_frame(client, finished, damaged),
        left_out=notes + sorted(damaged),
    )
    return with_complete_runs(study)


def report_command(name: str, where: str, sweeps: int) -> str:
    """The command that reads what `load_study` reads with the same arguments."""
    options = (["--where", where] if where else []) + (["--sweeps", str(sweeps)] if sweeps > 1 else [])
    return shlex.join(["bakeoff-report", name, *options])


def fault(run: Run) -> str:
    """The reason why a run below a sweep's is not a job of the sweep; empty if it is."""
    missing = [tag for tag in IDENTITY if not run.data.tags.get(tag, "").strip()]
    if run.info.lifecycle_stage == "deleted":
        return "it is deleted"
    if missing:
        return f"it has no tag {' and no tag '.join(missing)}, so it is of another tool or damaged"
    if not re.fullmatch(r"-?\d{1,18}", run.data.tags["seed"], re.ASCII):
        return f"its seed is '{one_line(run.data.tags['seed'])}', which is not a whole number"
    return ""


def runs_frame(runs: list[Run]) -> pd.DataFrame:
    """One row per run: run, status, date of its start, and its tags (`seed`, …); a missing tag is empty."""
    rows = [
        dict.fromkeys(OTHER_TAGS, "")
        | {key: one_line(value) for key, value in run.data.tags.items() if "mlflow." not in key}
        | {"run": run.info.run_id, "status": run.info.status, "date": day(run)}
        for run in runs
    ]
    return pd.DataFrame(rows).fillna("").astype({"seed": int})


def day(run: Run) -> str:
    """The day on which a run started, in UTC."""
    return datetime.fromtimestamp((run.info.start_time or 0) / 1000, UTC).date().isoformat()


def select(runs: pd.DataFrame, where: str) -> pd.DataFrame:
    """The runs for which an expression is true; raises UserError if it is invalid or no finished run is left."""
    try:
        chosen = runs.eval(where)
        if not isinstance(chosen, pd.Series) or chosen.dtype != bool:
            raise ValueError("not true or false for each run")
        kept = runs[chosen].reset_index(drop=True)
    except Exception as error:  # pandas raises many types
        columns = ", ".join(sorted(column for column in runs.columns if column.isidentifier()))
        raise UserError(
            f"where is '{where}', which is invalid ({error}); it must be true or false for each run, over {columns}."
        ) from error
    if not (kept["status"] == "FINISHED").any():
        names = ", ".join(runs["name"].unique())
        raise UserError(f"where is '{where}', which no finished run satisfies; the names are {names}.")
    return kept


def params_frame(runs: list[Run]) -> pd.DataFrame:
    """Columns run, key, value: every parameter of every run.

    A resumed run may change a parameter, which MLflow cannot; a tag holds its last value.
    """
    rows = [
        (run.info.run_id, key, one_line(run.data.tags.get(f"changed.{key}", value)))
        for run in runs
        for key, value in run.data.params.items()
    ]
    return pd.DataFrame(rows, columns=["run", "key", "value"])


def metrics_frame(
    client: MlflowClient, runs: list[Run], named: pd.DataFrame, damaged: list[str] | None = None
) -> pd.DataFrame:
    """Columns run, metric, step, value, name, seed: every metric of every run, sorted by run, metric and step.

    Run, metric and name are categories, since millions of rows share a few values. `damaged` receives a sentence on
    each artifact that cannot be read.
    """
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        tables = list(pool.map(lambda run: run_metrics(client, run, damaged), runs))
    of_run = np.repeat(np.arange(len(runs)), [len(table) for table in tables])
    frame: pd.DataFrame = pa.concat_tables(tables).unify_dictionaries().to_pandas()
    arms = pd.Categorical(named["name"], categories=named["name"].unique())
    return frame.assign(
        run=pd.Categorical.from_codes(of_run, categories=pd.Index(named["run"])),
        name=pd.Categorical.from_codes(arms.codes[of_run], dtype=arms.dtype),
        seed=named["seed"].to_numpy()[of_run],
    )


def run_metrics(client: MlflowClient, run: Run, damaged: list[str] | None = None) -> pa.Table:
    """Metric, step and value of a run: from its artifact if it has ended and left one, else from the store.

    A running run may hold the artifact of an earlier session that it resumes, so that one is never read. An artifact on
    this machine is read where it is, another is downloaded.
    """
    if run.info.status == "RUNNING":
        return metric_history(client, run)
    location = urlparse(run.info.artifact_uri)
    try:
        if location.scheme in ("", "file"):
            return read_metrics(Path(url2pathname(location.path)) / METRICS)
        with tempfile.TemporaryDirectory() as folder:
            return read_metrics(Path(client.download_artifacts(run.info.run_id, METRICS, folder)))
    except (FileNotFoundError, MlflowException):  # left out by a kill, or out of our reach
        pass
    except Exception as error:  # a file of others may hold anything
        if damaged is not None:
            what = f"the artifact {METRICS} of run {one_line(run.info.run_name)}"
            damaged.append(f"{what}: it is damaged ({first_line(error)}), so the store's own metrics are used")
    return metric_history(client, run)


def read_metrics(path: Path) -> pa.Table:
    """A file of metrics, as `metrics_table` makes them; raises many types of errors where it is something else."""
    table = pq.read_table(path, use_threads=False)
    table.validate(full=True)
    if table.schema == metrics_table({}).schema and not table["metric"].null_count + table["step"].null_count:
        metric, step = table["metric"].combine_chunks().indices.to_numpy(), table["step"].to_numpy()
        if np.all((np.diff(metric) > 0) | (np.diff(metric) == 0) & (np.diff(step) > 0)):
            return table
    metrics, steps, values = (table[column].to_pylist() for column in ("metric", "step", "value"))
    keys = ((str(metric), int(step)) for metric, step in zip(metrics, steps, strict=True))
    return metrics_table(dict(zip(keys, map(float, values), strict=True)))


def completions_frame(client: MlflowClient, runs: pd.DataFrame, damaged: list[str] | None = None) -> pd.DataFrame:
    """The completions that each arm logged, of the seed that most arms share: name, seed, and COLUMNS.

    They are the greedy answers to held-out prompts, or, where a run logged none, those of training. `damaged` receives
    a sentence on each artifact that cannot be read.
    """
    frames = [pd.DataFrame(columns=["name", "seed", *COLUMNS])]
    shared = runs.assign(arms=-runs.groupby("seed")["name"].transform("nunique"))
    of_one_seed = shared.sort_values(["arms", "seed"], kind="stable").drop_duplicates("name").sort_index()
    for _, run in of_one_seed.iterrows():
        for artifact in (HELDOUT, COMPLETIONS):
            try:
                with tempfile.TemporaryDirectory() as folder:
                    text = Path(client.download_artifacts(run["run"], artifact, folder)).read_text("utf-8")
                frames.append(read_completions(json.loads(text)).assign(name=run["name"], seed=run["seed"]))
                break
            except (MlflowException, OSError):  # none, or out of our reach
                continue
            except Exception as error:  # a file of others may hold anything
                if damaged is not None:
                    damaged.append(f"the completions of {run['name']}: {artifact} is damaged ({first_line(error)})")
    return pd.concat(frames, ignore_index=True)


def read_completions(table: dict[str, Any]) -> pd.DataFrame:
    """The rows of a table of completions; raises many types of errors where it is something else."""
    data = [[UNSHOWN.sub("\ufffd", each) if isinstance(each, str) else each for each in row] for row in table["data"]]
    rows = pd.DataFrame(data, columns=table["columns"])[COLUMNS]
    texts = rows.drop(columns=["update", "reward"]).map(str)
    numbers = {"update": rows["update"].astype(int), "reward": pd.to_numeric(rows["reward"], errors="coerce")}
    return texts.assign(**numbers).reindex(columns=COLUMNS)
