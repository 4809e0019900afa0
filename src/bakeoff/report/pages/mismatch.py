"""The worth of a correction where the sampler is not the policy: samplers × methods × corrections."""

from __future__ import annotations

import math
import re

import pandas as pd
from matplotlib.figure import Figure

from bakeoff.report.claim import Claim
from bakeoff.report.comparisons import Family
from bakeoff.report.figures import colours, finished, panels
from bakeoff.report.naming import enumerated
from bakeoff.report.statistics import Estimate, counted, mean_interval
from bakeoff.report.study import SAMPLED, Study
from bakeoff.report.tables import ends, number, unmoved

SAMPLER, CORRECTION, NONE, SAME = "regime.name", "choice/algorithm/correction", "none", "plain"


def finals(study: Study) -> pd.DataFrame:
    """A row for each run: sampler, correction, method, seed, and the `last` sampled accuracy."""
    return ends(study, SAMPLED, sampler=SAMPLER, correction=CORRECTION)


def samplers(frame: pd.DataFrame) -> list[str]:
    """The samplers by name and number, `sampler_lag_2` before `sampler_lag_16`; the policy itself comes first."""

    def parts(name: str) -> list[str | int]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

    return sorted(frame["sampler"].unique(), key=lambda name: (name != SAME, parts(name)))


def corrections(frame: pd.DataFrame) -> list[str]:
    """The corrections, none first."""
    return sorted(frame["correction"].unique(), key=lambda name: name != NONE)


def gains(frame: pd.DataFrame, sampler: str, correction: str) -> pd.Series:
    """Accuracy with a correction less that without, paired by method and seed."""
    by_pair = frame[frame["sampler"] == sampler].pivot_table(
        index=["method", "seed"], columns="correction", values="last", aggfunc="last"
    )
    if not {correction, NONE} <= set(by_pair):
        return pd.Series(dtype=float)
    return (by_pair[correction] - by_pair[NONE]).dropna()


def losses(frame: pd.DataFrame, sampler: str) -> pd.Series:
    """Accuracy without a correction where the sampler is the policy less that with this sampler, paired likewise."""
    plain = frame[frame["correction"] == NONE].pivot_table(
        index=["method", "seed"], columns="sampler", values="last", aggfunc="last"
    )
    return (plain[SAME] - plain[sampler]).dropna() if {SAME, sampler} <= set(plain) else pd.Series(dtype=float)


def family(study: Study, frame: pd.DataFrame, sampler: str) -> Family:
    """The comparisons of every correction with none under one sampler, over methods and seeds."""
    found = {(each, NONE): gains(frame, sampler, each) for each in corrections(frame) if each != NONE}
    still = unmoved(study, frame[frame["sampler"] == sampler], "correction")
    differences = {pair: own for pair, own in found.items() if len(own)}
    return Family(differences, study.margin, study.step(SAMPLED), still)


def table(study: Study) -> pd.DataFrame:
    """A row for each sampler and correction: accuracy, and the gain over none; means over methods and seeds."""
    frame, rows = finals(study), []
    for sampler in samplers(frame):
        decided = family(study, frame, sampler)
        named = {each.a: decided.result(each).replace(f"{NONE} is", "without it is") for each in decided.comparisons}
        results = {each.a: (each.change.text("+"), named[each.a]) for each in decided.comparisons}
        for correction in corrections(frame):
            own = frame[(frame["sampler"] == sampler) & (frame["correction"] == correction)]["last"]
            gain, result = results.get(correction, ("–", "–"))
            if len(own):
                rows.append((sampler, correction, f"{own.mean():.3f}", gain, result))
    return pd.DataFrame(rows, columns=["sampler", "correction", "sampled accuracy", "gain over none [95 %]", "result"])


def by_method(study: Study) -> pd.DataFrame:
    """A row for each method and correction: the mean accuracy over seeds with each sampler."""
    frame = finals(study)
    means = frame.pivot_table(index=["method", "correction"], columns="sampler", values="last", sort=False)
    means = means.reindex(columns=samplers(frame)).map("{:.2f}".format).replace("nan", "–")
    return means.reset_index().rename_axis(columns=None)


def verdict(study: Study) -> str:
    """The cost of each sampler without a correction, and the corrections that gain or lose accuracy."""
    frame = finals(study)
    costs: list[str] = []
    found: list[float] = []
    worth: dict[str, list[str]] = {}  # what corrections do → the samplers with which they do it
    for sampler in samplers(frame):
        if sampler == SAME:
            continue
        lost = losses(frame, sampler)
        if len(lost):
            costs.append(f"{sampler} costs {mean_interval(lost).text('+')}")
        decided = family(study, frame, sampler)
        found.append(decided.detectable)
        higher = [each.a for each in decided.comparisons if each.higher == each.a]
        lower = decided.below(NONE)
        said = [
            f"{enumerated(each)} {verb}{'s' * (len(each) == 1)}"
            for each, verb in ((higher, "gain"), (lower, "lose"))
            if each
        ]
        worth.setdefault(" and ".join(said) or "no correction makes a significant difference", []).append(sampler)
    seeds, methods = counted(frame["seed"].nunique(), "seed"), counted(frame["method"].nunique(), "method")
    least, most = (number(each(found, default=math.nan)) for each in (min, max))
    return (
        f"In sampled accuracy, without a correction: {'; '.join(costs) or 'no run has the policy as its sampler'}.\n\n"
        f"{' '.join(f'With {enumerated(names)}, {result}.' for result, names in worth.items())}\n\n"
        f"Means are over {methods} and {seeds}; intervals are over pairs of method and seed, and those with one seed "
        "share their start; results are corrected for the number of corrections of a sampler (Holm). Four of five such "
        f"studies find a gain of {least} to {most}, by sampler. One small model, one task."
    )


def plot(study: Study) -> Figure:
    """A panel for each method: mean accuracy over samplers, a line for each correction."""
    frame = finals(study)
    order, named = samplers(frame), colours(corrections(frame))
    methods = list(dict.fromkeys(frame["method"]))
    figure, every = panels(len(methods), 2.2, sharex=True, sharey=True)
    for axes, method in zip(every, methods, strict=True):
        own = frame[frame["method"] == method]
        means = own.pivot_table(index="sampler", columns="correction", values="last").reindex(order)
        for correction, colour in named.items():
            if correction in means:
                axes.plot(range(len(order)), means[correction], "o-", color=colour, ms=3, lw=1, label=correction)
        axes.set_title(method)
        axes.set_xticks(range(len(order)), [name.replace("sampler_", "").replace("_", " ") for name in order])
        axes.tick_params(axis="x", rotation=45)
    every[0].legend(fontsize=7)
    every[0].set_ylabel("sampled accuracy")
    return finished(figure, "Sampled accuracy with each sampler and correction: means.", study)


def gain(sampler: str, correction: str) -> Claim:
    """The claim that a correction gains under a sampler."""

    def of(study: Study) -> Estimate:
        return mean_interval(gains(finals(study), sampler, correction))

    return Claim(
        "10 correction",
        f"Where the sampler is {sampler.removeprefix('sampler_').replace('lag_', '')} updates old, {correction} gains",
        f"final sampled accuracy, {correction} − none, mean over methods and seeds",
        of,
        above=0.0,
        arms=f"regime={sampler} algorithm/correction={NONE},{correction}",
    )


TABLES = {"By method": by_method}
CLAIMS = [gain(f"sampler_lag_{lag}", correction) for lag in (4, 8) for correction in ("truncate", "icepop", "gate")]
