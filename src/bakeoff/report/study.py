"""A study as frames: its runs and what they logged, in memory and in a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bakeoff.report.statistics import counted

ACCURACY, SAMPLED, NOT_SCORED = "eval/greedy_accuracy", "eval/sampled_accuracy", "reward/failed"
PRIMARY = {ACCURACY: "greedy", SAMPLED: "sampled"}  # what arms are judged by: each a family of comparisons
SHARES = {ACCURACY, SAMPLED, NOT_SCORED, "advantage/rank_accuracy", "policy/effective_sample_size"}
FEW_SEEDS = 10


@dataclass
class Study:
    """The sweeps of a study, as read from a store or from the folder of a report.

    run          MLflow's id of its newest sweep
    command      that runs the newest sweep again, in its folder, a line for each launch there; may be empty
    report       command that reads these runs from the store
    runs         a row for each finished run: run, name (of its arm), algorithm, seed, status and the other tags
    unfinished   the same for runs that failed, ran out of memory, were stopped, or lack their end
    params       run, key and value, of finished runs
    metrics      run, metric, step, value, name and seed, of finished runs; sorted by run, metric and step
    completions  what each arm logged of one seed: greedy answers to held-out prompts, else completions of training
    left_out     a sentence without its full stop on each thing in the store that is not in these frames, and why
    """

    name: str
    question: str
    run: str
    runs: pd.DataFrame
    unfinished: pd.DataFrame
    params: pd.DataFrame
    metrics: pd.DataFrame
    completions: pd.DataFrame
    command: str = ""
    report: str = ""
    left_out: list[str] = field(default_factory=list)

    @property
    def arms(self) -> list[str]:
        """Names of the arms that finished a run, in the sweep's order."""
        return list(dict.fromkeys(self.runs["name"]))

    @property
    def seeds(self) -> int:
        """Number of seeds of each arm; the smallest where arms differ in it, 0 without an arm."""
        return int(self.runs.groupby("name")["seed"].nunique().min()) if len(self.runs) else 0

    @property
    def trained(self) -> bool:
        """Whether its runs trained a policy; predictions do not."""
        return ACCURACY in self._places

    def of(self, *metrics: str) -> pd.DataFrame:
        """The rows of some metrics; the rows of a run are contiguous and sorted by step."""
        places = [self._places[metric] for metric in metrics if metric in self._places]
        return self.metrics.take(np.concatenate(places) if places else [])

    def param_by_run(self, key: str) -> pd.Series:
        """The values of a parameter as text, by run; runs without it are left out."""
        return self.params[self.params["key"] == key].set_index("run")["value"]

    def param(self, key: str) -> pd.Series:
        """The values of a parameter as text, by name and seed; runs without it are left out."""
        rows = self.params[self.params["key"] == key].merge(self.runs[["run", "name", "seed"]], on="run")
        return rows.set_index(["name", "seed"])["value"]

    def declared(self, key: str) -> str:
        """A key of the study's file, as text; empty where it says nothing, or a version before it had no such key."""
        values = self.params["value"][self.params["key"] == f"study.{key}"]
        return "" if values.empty else str(values.iloc[0])

    @property
    def baseline(self) -> str:
        """The arm that the others are compared with, empty where the study names none or it has not finished."""
        return name if (name := self.declared("baseline")) in self.arms else ""

    @property
    def margin(self) -> float:
        """The difference in accuracy that is too small to matter."""
        return float(self.declared("margin") or 0.02)

    def step(self, metric: str) -> float:
        """The step of a final accuracy: 1 ÷ number of prompts. 0 for another metric, or where it is not known."""
        keys = ("task.heldout", "evaluation.final")
        sizes = pd.to_numeric(self.params["value"][self.params["key"].isin(keys)], errors="coerce")
        return 1 / float(sizes.max()) if metric in PRIMARY and sizes.max() > 0 else 0.0

    @cached_property
    def last(self) -> pd.DataFrame:
        """The last row of every metric of every run."""
        run, metric = (self.metrics[column].cat.codes.to_numpy() for column in ("run", "metric"))
        last = (np.diff(run, append=-1) != 0) | (np.diff(metric, append=-1) != 0)
        return self.metrics.take(np.flatnonzero(last))

    @cached_property
    def _places(self) -> dict[Any, Any]:
        """metric → the positions of its rows: computed once, since a page looks up dozens of metrics."""
        return self.metrics.groupby("metric", observed=True, sort=False).indices


def write_study(study: Study, folder: Path) -> None:
    """Writes a study's frames to a folder: all that its page needs."""
    about = {key: getattr(study, key) for key in ("name", "question", "run", "command", "report", "left_out")}
    (folder / "study.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    pd.concat([study.runs, study.unfinished]).to_csv(folder / "runs.csv", index=False)
    study.params.to_csv(folder / "params.csv", index=False)
    study.metrics.to_parquet(folder / "metrics.parquet", index=False)
    study.completions.to_csv(folder / "completions.csv", index=False)


def read_study(folder: Path | str) -> Study:
    """A study from the folder that `bakeoff-report` wrote it to, without a store."""
    folder = Path(folder)
    about = json.loads((folder / "study.json").read_text(encoding="utf-8"))

    def table(name: str, **types: Any) -> pd.DataFrame:
        """Text stays text: a config_id such as 1234e567 is no number, and 0123 keeps its zero."""
        return pd.read_csv(folder / name, dtype=str, keep_default_na=False).astype(types)

    runs = table("runs.csv", seed=int)
    ended = runs["status"] == "FINISHED"
    params, completions = table("params.csv"), table("completions.csv", seed=int, update=int)
    return Study(
        **about,
        runs=runs[ended].reset_index(drop=True),
        unfinished=runs[~ended].reset_index(drop=True),
        params=params,
        metrics=pd.read_parquet(folder / "metrics.parquet"),
        completions=completions.assign(reward=pd.to_numeric(completions["reward"])),
    )


def provenance(study: Study) -> str:
    """The number of seeds of an arm, and the seeds that its values were tuned on: printed on every figure."""
    few = " (few)" if study.seeds < FEW_SEEDS else ""
    on = tuning_seeds(study)
    plural = "s" if "," in on else ""
    return f"{counted(study.seeds, 'seed')}{few}; " + (f"tuned on seed{plural} {on}" if on else "nothing was tuned")


def tuning_seeds(study: Study) -> str:
    """The seeds that values were tuned on, as the study declares them; empty where no run has tuned values."""
    tuned = "tuned" not in study.runs or (study.runs["tuned"] != "untuned").any()
    return study.declared("tuning_seeds").strip("[]") if tuned else ""


def outcome(run: pd.Series) -> str:
    """How an unfinished run ended: `out of memory`, `diverged`, `incomplete`, or its status in lower case."""
    return str(run.get("outcome") or run["status"]).lower()
