"""Scores of methods in regimes, a verdict on each prediction of a regime, and the methods to choose in it."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import pandas as pd
from omegaconf import OmegaConf

from bakeoff.regime import START, Prediction, parsed
from bakeoff.report.comparisons import Family
from bakeoff.report.statistics import (
    CONFIDENCE,
    Estimate,
    equivalent,
    holm,
    mean_interval,
    middle_mean,
    paired_p,
    stratified_iqm,
)
from bakeoff.report.study import SAMPLED, Study
from bakeoff.report.tables import ends, unmoved

SCORE = "score"  # (final − start) ÷ (1 − start) of the sampled accuracy: 0 is no progress, 1 is all right
VERDICTS = ("as predicted", "against the prediction", "undecided", "not tested")


class Verdict(NamedTuple):
    """A prediction of a regime, the paired effect over seeds, and what it says of the prediction: one of VERDICTS."""

    regime: str
    prediction: Prediction
    effect: Estimate
    seeds: int
    verdict: str


class Choice(NamedTuple):
    """The methods of a regime: those that no other exceeds, and the others, each highest first.

    One exceeds another if it is significantly higher, and both are not equivalent within the study's margin.
    """

    regime: str
    property: str
    choose: list[str]
    avoid: list[str]


def scores(study: Study, metric: str = SAMPLED) -> pd.DataFrame:
    """A row for each run: regime, method, seed, first and last value of a metric, and the score between start and 1."""
    frame = ends(study, metric, regime="regime.name")
    return frame.assign(**{SCORE: (frame["last"] - frame["first"]) / (1 - frame["first"])})


def regimes(study: Study) -> pd.DataFrame:
    """A row for each regime that ran, in the order in which they started: property, predictions and source.

    A property that several regimes have is followed by the name of each.
    """
    keys = study.params[study.params["key"].str.startswith("regime.")]
    by_run = keys.pivot(index="run", columns="key", values="value").reindex(study.runs["run"]).dropna()
    by_run.columns = [column.removeprefix("regime.") for column in by_run.columns]
    found = by_run.drop_duplicates("name").set_index("name")
    twice = found["property"].duplicated(keep=False)
    return found.assign(property=found["property"].where(~twice, found["property"] + " (" + found.index + ")"))


def wide(frame: pd.DataFrame, regime: str, column: str = SCORE) -> pd.DataFrame:
    """Values of a regime: a row for each seed, a column for each method."""
    return frame[frame["regime"] == regime].pivot_table(index="seed", columns="method", values=column, aggfunc="last")


def family(study: Study, regime: str, frame: pd.DataFrame) -> Family:
    """The comparisons of every pair of methods within a regime, in the final sampled accuracy."""
    values = wide(frame, regime, "last")
    pairs = itertools.combinations(values.columns, 2)
    still = unmoved(study, frame[frame["regime"] == regime], "method")
    differences = {(a, b): (values[a] - values[b]).dropna() for a, b in pairs}
    return Family(differences, study.margin, study.step(SAMPLED), still)


def choices(study: Study) -> list[Choice]:
    """The choice of each regime that ran."""
    frame, found = scores(study), []
    for regime, about in regimes(study).iterrows():
        pairs = [each for each in family(study, str(regime), frame).comparisons if each.higher and not each.within]
        lower = {each.b if each.higher == each.a else each.a for each in pairs}
        ordered = wide(frame, str(regime)).mean().sort_values(ascending=False).index
        best, rest = ([name for name in ordered if (name in lower) == exceeded] for exceeded in (False, True))
        found.append(Choice(str(regime), about["property"], best, rest))
    return found


def shared(frame: pd.DataFrame) -> list[str]:
    """Regimes with at least half as many methods as the regime with the most: those that an aggregate covers."""
    methods = frame.groupby("regime", sort=False)["method"].nunique()
    return list(methods[methods >= methods.max() / 2].index)


def everywhere(frame: pd.DataFrame, method: str, common: list[str]) -> pd.DataFrame:
    """The runs of a method in these regimes; no run where it lacks one of them."""
    own = frame[(frame["method"] == method) & frame["regime"].isin(common)]
    return own if set(own["regime"]) == set(common) else own.head(0)


def overall(frame: pd.DataFrame, method: str, common: list[str]) -> Estimate:
    """The interquartile mean of a method over regimes and seeds; NaN where it lacks one of the regimes."""
    return stratified_iqm(everywhere(frame, method, common))


def ranked(frame: pd.DataFrame) -> list[str]:
    """Methods by the interquartile mean of their scores over the shared regimes; those that lack one come last."""
    own = {name: everywhere(frame, name, shared(frame))[SCORE] for name in frame["method"].unique()}
    return sorted(own, key=lambda name: -middle_mean(own[name]) if len(own[name]) else math.inf)


def verdicts(study: Study) -> list[Verdict]:
    """A verdict for each prediction of each regime that ran, all corrected together by Holm's method.

    `A > B` is as predicted if A is significantly higher, and against the prediction if B is. `A ~ B` is as predicted if
    two one-sided tests place the difference within the study's margin, or if all seeds are equal, and against it if it
    is significant and the mean is beyond the margin; it is not tested where the policies of both have not moved.
    """
    stated = [
        (str(regime), parsed(str(text)))
        for regime, row in regimes(study).iterrows()
        for text in OmegaConf.create(row["predictions"])
    ]
    frames = {metric: scores(study, metric) for metric in {prediction.metric for _, prediction in stated}}
    frame = scores(study)
    unmoving = still(study, frame)
    found = [(regime, each, effect(frames[each.metric], regime, each)) for regime, each in stated]
    steps = [study.step(each.metric) for _, each in stated]
    corrected = holm([paired_p(own, step) for (*_, own), step in zip(found, steps, strict=True)])
    return [
        Verdict(
            *(regime, each, mean_interval(own, step), len(own)),
            judged(each, own, p, study.margin, unmoving >= arms(regime, each), step),
        )
        for (regime, each, own), step, p in zip(found, steps, corrected, strict=True)
    ]


def still(study: Study, frame: pd.DataFrame) -> frozenset[str]:
    """The arms of `scores` whose policies have not moved, as `method@regime`."""
    return unmoved(study, frame.assign(at=frame["method"] + "@" + frame["regime"]), "at")


def arms(regime: str, prediction: Prediction) -> set[str]:
    """The two that a prediction compares, as `method@regime`."""
    left, right = prediction.left_in or regime, prediction.right_in or regime
    return {f"{prediction.left}@{left}", f"{prediction.right}@{right}"}


def effect(frame: pd.DataFrame, regime: str, prediction: Prediction) -> pd.Series:
    """The paired difference left − right that a prediction is about, by seed; empty where an arm is missing.

    `frame` has the `scores` of the prediction's metric.
    """

    def values(method: str, where: str, column: str) -> pd.Series:
        own = wide(frame, where or regime, column)
        return own[method] if method in own else pd.Series(dtype=float)

    left = values(prediction.left, prediction.left_in, "last")
    if prediction.right == START:
        return (left - values(prediction.left, prediction.left_in, "first")).dropna()
    return (left - values(prediction.right, prediction.right_in, "last")).dropna()


def judged(prediction: Prediction, difference: pd.Series, p: float, margin: float, still: bool, step: float) -> str:
    """The verdict of a prediction from its paired differences, their corrected p, and whether neither arm moved."""
    if len(difference) < 2 or (prediction.equal and still):
        return "not tested"
    significant, mean = p < 1 - CONFIDENCE, float(difference.mean())
    if prediction.equal:
        if equivalent(difference, margin, step):
            return "as predicted"
        return "against the prediction" if significant and abs(mean) > margin else "undecided"
    if not significant:
        return "undecided"
    return "as predicted" if mean > 0 else "against the prediction"
