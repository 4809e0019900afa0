"""A claim that a study tests: an effect, a bar, and one rule for all.

A claim is supported if the effect's whole interval lies on the claimed side of the bar, not supported if it lies on
the other side, and undecided if the bar is inside. The page of all claims corrects these verdicts for their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from bakeoff.report.statistics import Estimate, paired_difference, paired_ratio
from bakeoff.report.study import ACCURACY, Study
from bakeoff.report.tables import by_seed, unmoved


@dataclass
class Claim:
    """A sentence that a study can test; its page lists it in CLAIMS.

    step              of the road in docs/methods.md, such as `3 baseline`; claims are ordered by its number
    text              what is claimed, and in which regime
    effect            what is measured, by name
    of                computes the effect and its interval from the study
    above             the bar of a claim that the effect is above it
    below             the bar of a claim that the effect is below it; without either the effect is a number, not tested
    interval          what the interval is: 95 % over seeds, or the range over starts whose effects truly differ
    by_construction   whether the claim follows from the code, so that the numbers cannot contradict it
    arms              overrides of its study's sweep that run the arms which it compares; empty: the whole study
    """

    step: str
    text: str
    effect: str
    of: Callable[[Study], Estimate]
    above: float | None = None
    below: float | None = None
    interval: str = "95 %"
    by_construction: bool = False
    arms: str = ""

    @property
    def bar(self) -> float:
        """The value that the effect is compared with, NaN without one."""
        return next((each for each in (self.above, self.below) if each is not None), math.nan)

    @property
    def rule(self) -> str:
        """When it is supported, in words; empty for a number."""
        if math.isnan(self.bar):
            return ""
        what = "interval" if self.interval == Claim.interval else self.interval
        return f"{what} {'below' if self.above is None else 'above'} {self.bar:g}"

    def verdict(self, effect: Estimate) -> str:
        """`supported`, `not supported`, `undecided`, `by construction`, or `measured` for a number."""
        if math.isnan(self.bar):
            return "measured"
        if math.isnan(effect.low) or effect.low <= self.bar <= effect.high:
            return "undecided"
        if (effect.low > self.bar) != (self.above is not None):
            return "not supported"
        return "by construction" if self.by_construction else "supported"


def difference(a: str, b: str, metric: str = ACCURACY) -> Callable[[Study], Estimate]:
    """The paired difference of a final metric between two arms; none between arms that have not moved."""

    def of(study: Study) -> Estimate:
        if {a, b} <= unmoved(study):
            return Estimate()
        return paired_difference(by_seed(study, metric, a), by_seed(study, metric, b), study.step(metric))

    return of


def ratio(a: str, b: str, metric: str) -> Callable[[Study], Estimate]:
    """The paired ratio of a final metric between two arms."""
    return lambda study: paired_ratio(by_seed(study, metric, a), by_seed(study, metric, b))
