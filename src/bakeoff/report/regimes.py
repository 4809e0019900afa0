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
    equivalence_p,
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
HOLDS, BROKEN = "holds by construction", "broken"


class Verdict(NamedTuple):
    """A prediction or an invariance of a regime, the paired effect over seeds, and what it says of the prediction.

    The verdict is one of VERDICTS, or of an invariance HOLDS or BROKEN.
    """

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
    """A row for each regime that ran, in the order in which they started: property, predictions, invariances, source.

    A property that several regimes have is followed by the name of each.
    """
    keys = study.params[study.params["key"].str.startswith("regime.")]
    by_run = keys.pivot(index="run", columns="key", values="value").reindex(study.runs["run"])
    by_run.columns = [column.removeprefix("regime.") for column in by_run.columns]
    columns = ["name", "property", "predictions", "invariances", "source"]
    by_run = by_run.reindex(columns=columns).fillna({"invariances": "[]"}).dropna()
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
    two one-sided tests place the difference within the study's margin, and against it if it is significant and the mean
    is beyond the margin; it is not tested where the policies of both have not moved.
    """
    frame, margin = scores(study), study.margin
    unmoving = still(study, frame)
    found = [(regime, each, own, study.step(each.metric)) for regime, each, own in effects(study, frame, "predictions")]
    tested = [len(own) > 1 and not (each.equal and unmoving >= arms(regime, each)) for regime, each, own, _ in found]
    own_p: list[float] = []  # of a difference, then of equivalence where that is predicted
    for _, each, own, step in itertools.compress(found, tested):
        own_p += [paired_p(own, step), *([equivalence_p(own, margin, step)] if each.equal else [])]
    corrected = iter(holm(own_p))
    judgements = []
    for (regime, each, own, step), is_tested in zip(found, tested, strict=True):
        verdict = "not tested"
        if is_tested:
            different, alike = next(corrected), next(corrected) if each.equal else 1.0
            verdict = judged(each, float(own.mean()), different, alike, margin)
        judgements.append(Verdict(regime, each, mean_interval(own, step), len(own), verdict))
    return judgements


def invariances(study: Study) -> list[Verdict]:
    """A verdict for each invariance of each regime that ran: it holds if no seed differs by more than the margin."""
    return [
        Verdict(
            *(regime, each, mean_interval(own, study.step(each.metric)), len(own)),
            HOLDS if len(own) and own.abs().max() <= study.margin else BROKEN if len(own) else "not tested",
        )
        for regime, each, own in effects(study, scores(study), "invariances")
    ]


def effects(study: Study, frame: pd.DataFrame, kind: str) -> list[tuple[str, Prediction, pd.Series]]:
    """The regime, the comparison and its `effect`, of all that the regimes state under this key."""
    stated = [
        (str(regime), parsed(str(text)))
        for regime, row in regimes(study).iterrows()
        for text in OmegaConf.create(row[kind])
    ]
    metrics = {prediction.metric for _, prediction in stated}
    frames = {metric: frame if metric == SAMPLED else scores(study, metric) for metric in metrics}
    return [(regime, each, effect(frames[each.metric], regime, each)) for regime, each in stated]


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


def judged(prediction: Prediction, mean: float, of_difference: float, of_equivalence: float, margin: float) -> str:
    """The verdict of a prediction from the mean difference and the corrected p of its tests."""
    significant = of_difference < 1 - CONFIDENCE
    if prediction.equal:
        if of_equivalence < 1 - CONFIDENCE:
            return "as predicted"
        return "against the prediction" if significant and abs(mean) > margin else "undecided"
    if not significant:
        return "undecided"
    return "as predicted" if mean > 0 else "against the prediction"
