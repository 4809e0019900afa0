"""Parts of an arm's configuration that do nothing in its runs, or stop working: a rule for each metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pandas.api.typing import SeriesGroupBy

from bakeoff.measure import STILL
from bakeoff.report.study import Study
from bakeoff.report.tables import REFERENCE_KL, grouped, largest_kl, percent


@dataclass(frozen=True)
class Rule:
    """When a metric says that something is idle.

    metric     logged at every update
    measured   computes one number for each run from its values, in the order of its updates
    idle       whether that number, as a mean over an arm's runs, says so
    sentence   with `{arm}`, and `{value}` and `{share}` for the number, as it is and in percent
    param      beginning of the parameters of the arms that have the part; empty where the metric tells
    """

    metric: str
    measured: Callable[[SeriesGroupBy[Any, Any]], pd.Series]
    idle: Callable[[float], bool]
    sentence: str
    param: str = ""


RULES = [
    Rule(
        "policy/cg_residual",
        lambda runs: runs.mean(),
        lambda residual: residual > 0.5,
        "the conjugate gradient of {arm} leaves {value} of the gradient's norm (mean over updates): its direction is "
        "not the natural gradient's; algorithm.optimizer.fisher_tokens may be too few",
    ),
    Rule(
        "policy/accepted",
        lambda runs: 1 - runs.mean(),
        lambda refused: refused > 0.1,
        "{arm} takes no step in {share} of its updates, because its line search refuses them",
    ),
    Rule(
        "kl/beta_behaviour",
        lambda runs: runs.agg(lambda beta: (beta < 0.01 * beta.iloc[0]).mean()),
        lambda dead: dead > 0.1,
        "the KL penalty of {arm} is off in {share} of its updates: β is below 1 % of its start",
    ),
    *(
        Rule(
            metric,
            lambda runs: runs.agg(lambda beta: (beta > 1000 * beta.iloc[0]).mean()),
            lambda excessive: excessive > 0.1,
            "the KL of {arm} stays above its target: β is above 1000 times its start in {share} of its updates; the "
            "target is below what a step at this learning rate makes",
        )
        for metric in ("kl/beta_behaviour", "kl/beta_reference")
    ),
    Rule(
        REFERENCE_KL,
        largest_kl,
        lambda most: most < STILL,
        "the policy of {arm} hardly moves: its KL to the start is at most {value} nats per completion; its learning "
        "rate may be too low; tune it with `bakeoff-tune`",
    ),
    Rule(
        "policy/clip_fraction",
        lambda runs: runs.max(),
        lambda most: most < 0.001,
        "the clip of {arm} never binds: it touches at most {share} of an update's tokens",
        param="algorithm.objective.epsilon",
    ),
    Rule(
        "critic/value_clip_fraction",
        lambda runs: runs.max(),
        lambda most: most < 0.001,
        "the value clip of {arm} never binds: it touches at most {share} of an update's tokens",
    ),
]


def idle(study: Study) -> list[str]:
    """A sentence on each rule that applies and the arms of each method that it applies to."""
    found = []
    methods = study.runs.drop_duplicates("name").set_index("name")["algorithm"]
    for rule in RULES:
        values = rule.measured(grouped(study, rule.metric)).groupby("name").mean()
        having = study.params[study.params["key"].str.startswith(rule.param)]
        arms = set(study.runs["name"][study.runs["run"].isin(having["run"])]) if rule.param else set(study.arms)
        named = [arm for arm in study.arms if arm in values and arm in arms and rule.idle(values[arm])]
        for method, own in values[named].groupby(methods[named], sort=False):
            every = int((methods == method).sum())
            arm = str(own.index[0]) if len(own) == 1 else f"{method} (in {len(own)} of its {every} arms)"
            value = between(own, lambda each: f"{each:.2g}")
            found.append(rule.sentence.format(arm=arm, value=value, share=between(own, percent)))
    return found + never_renewed(study)


def never_renewed(study: Study) -> list[str]:
    """A sentence on each arm whose runs end before they renew their reference for the first time."""
    wanted = study.param_by_run("algorithm.kl_to_reference.iteration_updates")
    updates = study.last.astype({"run": str}).groupby("run")["step"].max()
    of_runs = study.runs.assign(wanted=study.runs["run"].map(wanted).astype(float), made=study.runs["run"].map(updates))
    arms = of_runs.dropna(subset=["wanted"]).groupby("name", sort=False)[["wanted", "made"]].max()
    return [
        f"{arm} never renews its reference: that is due after {wanted:.0f} updates, and its runs have {made:.0f}"
        for arm, wanted, made in arms.itertuples()
        if made < wanted
    ]


def between(values: pd.Series, text: Callable[[float], str]) -> str:
    """The smallest and the largest value as text, or one where both read alike."""
    ends = dict.fromkeys([text(float(values.min())), text(float(values.max()))])
    return " to ".join(ends)
