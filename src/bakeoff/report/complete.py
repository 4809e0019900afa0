"""Which finished runs are whole: a status says that a run ended, its metrics say whether it reached its end."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd

from bakeoff.report.study import ACCURACY, Study

UNITS = ("sequences", "tokens", "seconds", "work")  # of a budget, beside updates
INCOMPLETE = "INCOMPLETE"  # the status of a run that MLflow calls finished and that lacks its end


def with_complete_runs(study: Study) -> Study:
    """The study with its whole runs alone; the others are unfinished, and say what they lack."""
    reasons = lacks(study)
    if not reasons:
        return study
    own = study.runs["run"].isin(list(reasons))
    lost = study.runs[own].assign(status=INCOMPLETE, failure=study.runs["run"].map(reasons))
    metrics = study.metrics[~study.metrics["run"].isin(list(reasons))]
    kept = study.runs[~own].reset_index(drop=True)
    return replace(
        study,
        runs=kept,
        unfinished=pd.concat([study.unfinished, lost], ignore_index=True).fillna(""),
        params=study.params[~study.params["run"].isin(list(reasons))],
        metrics=metrics.assign(
            **{column: metrics[column].cat.remove_unused_categories() for column in ("run", "name", "metric")}
        ),
        completions=study.completions[study.completions["name"].isin(kept["name"])],
    )


def lacks(study: Study) -> dict[str, str]:
    """What each run of a study that trains lacks, by MLflow's id; whole runs are left out.

    A run is whole if every held-out accuracy is in [0, 1], the last one is of its last update, and the budget is used.
    Where the budget is not known, the longest run of the study is the measure.
    """
    if not study.trained:
        return {}
    steps = study.last.groupby("run", observed=True)["step"].max()
    accuracies = study.of(ACCURACY)
    wrong = accuracies[~accuracies["value"].between(0, 1)].drop_duplicates("run").set_index("run")
    evaluated = accuracies.groupby("run", observed=True)["step"].max()
    params = study.params[study.params["key"].str.startswith("budget.")].set_index(["run", "key"])["value"].to_dict()
    counters = study.last[study.last["metric"].isin([f"progress/{unit}" for unit in UNITS])]
    counted = counters.astype({"run": str, "metric": str}).set_index(["run", "metric"])["value"].to_dict()
    found = {}
    for run in study.runs["run"]:
        unit = params.get((run, "budget.unit"), "").split(".")[-1]
        budget = pd.to_numeric(params.get((run, "budget.limit"), ""), errors="coerce")
        used = counted.get((run, f"progress/{unit}"), 0.0) if unit in UNITS else steps.get(run, 0)
        if unit not in ("updates", *UNITS) or math.isnan(budget):
            unit, budget, used = "updates", steps.max(), steps.get(run, 0)
        if run not in evaluated.index:
            found[run] = "it logged no held-out accuracy"
        elif run in wrong.index:
            found[run] = f"its held-out accuracy at update {wrong['step'][run]} is {wrong['value'][run]:g}"
        elif evaluated[run] < steps[run]:
            found[run] = f"its last held-out accuracy is of update {evaluated[run]} of {steps[run]}"
        elif not used >= budget:
            found[run] = f"it used {used:g} of {budget:g} {unit}"
    return found
