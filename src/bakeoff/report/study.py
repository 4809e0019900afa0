"""A study as frames: its runs, what was logged, and what makes its arms comparable or not."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from bakeoff.errors import UserError
from bakeoff.report import store
from bakeoff.tracking import DIVERGED, NOT_IN_CONFIG_ID, OUT_OF_MEMORY, Tracking

ACCURACY = "eval/greedy_accuracy"
TRACKING_URI = "sqlite:///mlflow.db"
NAMED_BY_OTHERS = ("algorithm", "arm", "seed", "sweeps", "tuned")
SHORT = {
    "model": "",
    "batch.group_size": "G",
    "algorithm.kl_to_reference.beta": "β",
    "algorithm/kl_to_reference": "KL",
    "algorithm/objective": "",
    "algorithm.optimizer.epochs": "epochs",
    "algorithm.optimizer.lr": "lr",
}
MUST_MATCH = ("rollout", "budget", "task", "model", "sft", "reward", "preferences", "evaluation")


@dataclass
class Study:
    """A sweep as read from the store.

    runs         a row a finished run: run, arm, algorithm, seed, status and the other tags
    unfinished   the same of runs that failed, ran out of memory or were stopped
    params       run, key, value, of finished runs
    metrics      run, metric, step, value, and the run's arm name and seed, of finished runs, in this order
    """

    name: str
    question: str
    notebook: str
    run_id: str
    tracking: Tracking
    runs: pd.DataFrame
    unfinished: pd.DataFrame
    params: pd.DataFrame
    metrics: pd.DataFrame

    @property
    def arms(self) -> list[str]:
        """Names of the arms that finished a run, in the order in which the sweep names them."""
        return list(dict.fromkeys(self.runs["name"]))

    @property
    def trained(self) -> bool:
        """Whether its runs trained a policy; those of a prediction did not."""
        return ACCURACY in self._places

    def of(self, *metrics: str) -> pd.DataFrame:
        """The rows of some metrics: those of a run are together, in the order of its steps."""
        places = [self._places[metric] for metric in metrics if metric in self._places]
        return self.metrics.take(np.concatenate(places) if places else [])

    @cached_property
    def last(self) -> pd.DataFrame:
        """The last row of every metric of every run."""
        run, metric = (self.metrics[column].cat.codes.to_numpy() for column in ("run", "metric"))
        last = (np.diff(run, append=-1) != 0) | (np.diff(metric, append=-1) != 0)
        return self.metrics.take(np.flatnonzero(last))

    @cached_property
    def _places(self) -> dict[Any, Any]:
        """metric → where its rows are: sought once, since a page asks often."""
        return self.metrics.groupby("metric", observed=True, sort=False).indices


def default_tracking() -> Tracking:
    """The store that MLFLOW_TRACKING_URI names, or mlflow.db in this folder."""
    return Tracking(uri=os.environ.get("MLFLOW_TRACKING_URI", TRACKING_URI))


def load_study(name: str, tracking: Tracking | None = None, where: str = "", sweeps: int = 1) -> Study:
    """Reads the newest sweep of a study, or so many as one; raises UserError where no run of it has finished.

    `where` chooses among them: a pandas expression over the columns of `runs` (name, algorithm, seed, other tags).
    Of runs of one arm and seed, as a sweep leaves them that was gone on with, the last counts.
    """
    tracking = tracking or default_tracking()
    parents = store.find_sweeps(tracking, name, sweeps)
    parent, children = parents[0], [run for each in reversed(parents) for run in store.children(tracking, each)]
    every = store.runs_frame(children)
    if not any(run.info.status == "FINISHED" for run in children):
        raise UserError(f"no run of the study '{name}' has finished yet; the sweep says how to go on with it.")
    every = every.drop_duplicates(["config_id", "seed"], keep="last").reset_index(drop=True)
    every["name"] = arm_names(every)
    every = chosen(every, where) if where else every
    finished = every["status"] == "FINISHED"
    runs, unfinished = every[finished].reset_index(drop=True), every[~finished].reset_index(drop=True)
    of_finished = set(runs["run"])
    kept = [run for run in children if run.info.run_id in of_finished]
    metrics = store.metrics_frame(tracking, kept)
    of_run, code = runs.set_index("run").loc[metrics["run"].cat.categories], metrics["run"].cat.codes.to_numpy()
    metrics["name"] = pd.Categorical(of_run["name"], categories=list(dict.fromkeys(runs["name"])))[code]
    metrics["seed"] = of_run["seed"].to_numpy()[code]
    tags, params = parent.data.tags, store.params_frame(kept)
    question, notebook = tags.get("question", ""), tags.get("notebook", "methods")
    return Study(name, question, notebook, parent.info.run_id, tracking, runs, unfinished, params, metrics)


def chosen(runs: pd.DataFrame, where: str) -> pd.DataFrame:
    """The runs of which an expression is true; raises UserError where it cannot be read, or none is left."""
    try:
        kept = runs.query(where).reset_index(drop=True)
    except Exception as error:  # whatever pandas makes of it
        raise UserError(
            f"where is '{where}', which cannot be read ({error}); it is an expression over "
            f"{', '.join(sorted(column for column in runs.columns if column.isidentifier()))}."
        ) from error
    if not (kept["status"] == "FINISHED").any():
        raise UserError(
            f"where is '{where}', of which no finished run is true; names are {', '.join(runs['name'].unique())}."
        )
    return kept


def brief(value: str) -> str:
    """A value as a name has it: of a number that an optimiser drew, three digits."""
    try:
        return value if len(value) < 8 else f"{float(value):.3g}"
    except ValueError:
        return value


def settings(runs: pd.DataFrame) -> list[dict[str, str]]:
    """What the command or the sweep set, for each run: key → value."""
    lists = runs["overrides"] if "overrides" in runs else pd.Series("[]", runs.index)
    return [dict(o.lstrip("+~").split("=", 1) for o in json.loads(each) if "=" in o) for each in lists.fillna("[]")]


def varied(runs: pd.DataFrame) -> list[str]:
    """The keys to which a sweep gives several values, but for method, arm and seed."""
    values = settings(runs)
    keys = dict.fromkeys(key for each in values for key in each)
    return [k for k in keys if k not in NAMED_BY_OTHERS and len({each.get(k) for each in values}) > 1]


def arm_names(runs: pd.DataFrame) -> pd.Series:
    """The algorithm's name, or the arm's where the sweep names arms, and what else the sweep varied.

    With the arm's hash where that does not tell two arms apart.
    """
    values, keys = settings(runs), varied(runs)
    heads = [each.get("arm", algorithm) for each, algorithm in zip(values, runs["algorithm"], strict=True)]
    names = pd.Series(
        [
            " ".join([head, *(f"{SHORT.get(k, k)}={brief(each[k])}".lstrip("=") for k in keys if k in each)])
            for head, each in zip(heads, values, strict=True)
        ],
        runs.index,
    )
    shared = runs.groupby(names)["config_id"].transform("nunique") > 1
    return names.where(~shared, names + " " + runs["config_id"].str[:4])


def question_of(study: Study) -> list[str]:
    """The keys and groups in which the arms differ on purpose: what the sweep varies, and what the study declares."""
    declared = study.params[study.params["key"] == "study.varies"]["value"]
    return varied(study.runs) + [key for each in declared.unique() for key in re.findall(r"[\w./]+", each)]


def covers(keys: list[str], key: str) -> bool:
    """Whether one of the keys is this key, or a group that holds it: `model` holds model.name."""
    return any(key == each or key.startswith(f"{each}.") for each in keys)


def mismatches(study: Study) -> list[str]:
    """Sentences that name what differs between arms of a seed and must not, and what is missing; empty if matched.

    What the study varies is its question and no mismatch: `question_of` names it.
    """
    found = []
    keys, asked = study.params["key"], question_of(study)
    shared = study.params[keys.str.split(".").str[0].isin(MUST_MATCH) & ~keys.map(lambda each: covers(asked, each))]
    wide = shared.pivot(index="run", columns="key", values="value").reindex(study.runs["run"]).fillna("none")
    names, seed = study.runs.set_index("run")["name"], study.runs.set_index("run")["seed"]
    in_seed, in_arm = (wide.groupby(by.to_numpy()).nunique().max() > 1 for by in (seed, names))
    for key in wide.columns[
        in_seed | ((wide.nunique() > 1) & ~in_arm)
    ]:  # what varies with the seed alone is drawn by it
        arms = {value: list(dict.fromkeys(names[own.index])) for value, own in wide[key].groupby(wide[key])}
        fewest_first = sorted(arms.items(), key=lambda item: len(item[1]))
        most = len(fewest_first[-1][1])
        shown = [f"{'the others' if len(own) == most > 2 else ', '.join(own)} {value}" for value, own in fewest_first]
        found.append(f"{key} differs: {'; '.join(shown)}")
    if not study.trained:
        return found
    if (study.runs.groupby("seed")["start"].nunique() > 1).any() and "model" not in asked:
        found.append("the arms start from different weights")
    own_seeds = {name: set(rows["seed"]) for name, rows in study.runs.groupby("name")}
    everyone = set.union(*own_seeds.values())
    for name, own in own_seeds.items():
        if own != everyone:
            missing = ", ".join(map(str, sorted(everyone - own)))
            found.append(f"{name!s} has no run with seed {missing}")
    for _, run in study.unfinished.iterrows():
        found.append(f"{run['name']} seed {run['seed']} is {outcome(run)}: {run.get('failure') or 'no reason given'}")
    for name, rows in study.runs.groupby("name"):
        if (rows["tuned"] == "untuned").any():
            found.append(f"{name!s} was not tuned for this task")
    return found


def matched(study: Study) -> str:
    """What the arms of a trained study share, or how they are not matched, in Markdown; and what the sweep varies."""
    problems, asked = mismatches(study), question_of(study)
    text = (
        "**Not matched:** " + "; ".join(problems) + "."
        if problems
        else "**Matched:** arms of a seed share start weights, prompts, completions a step, budget and evaluation."
    )
    return text + (f" **Varied by the study:** {', '.join(f'`{key}`' for key in asked)}." if asked else "")


FEW_SEEDS = 10


def provenance(study: Study) -> str:
    """How many seeds an arm has, and on which seeds its values were tuned: printed on every figure."""
    seeds = int(study.runs.groupby("name")["seed"].nunique().min())
    small = ", a small number" if seeds < FEW_SEEDS else ""
    tuned = study.params[study.params["key"] == "study.tuning_seeds"]["value"]
    on = tuned.iloc[0].strip("[]") if len(tuned) else ""
    return f"{seeds} seed{'s' * (seeds > 1)}{small}; " + (f"tuned on seed {on}" if on else "nothing was tuned")


def outcome(run: pd.Series) -> str:
    """`OOM` or `diverged` where a run ended so, else its status."""
    return {OUT_OF_MEMORY: "OOM", DIVERGED: DIVERGED}.get(str(run.get("outcome")), str(run["status"]))


def config_diff(study: Study) -> pd.DataFrame:
    """A row for each parameter that differs between arms, a column an arm: those of its run with the lowest seed.

    What the seed draws, such as `sft.seed`, is no difference between arms.
    """
    names = study.runs.sort_values("seed").drop_duplicates("name").set_index("run")["name"]
    params = study.params[study.params["run"].isin(names.index)]
    params = params.assign(name=params["run"].map(names))
    params = params[
        ~params["key"].str.split(".").str[0].isin(NOT_IN_CONFIG_ID) & ~params["key"].str.endswith("_option_")
    ]
    wide = params.pivot_table(index="key", columns="name", values="value", aggfunc="first").reindex(columns=study.arms)
    differs = wide.fillna("–").nunique(axis=1) > 1
    return wide[differs].fillna("–").sort_index()
