"""A claim that a study tests: an effect, a bar, and one rule for all.

A claim is supported if the effect's whole 95 % interval lies on the claimed side of the bar, not supported if it lies
on the other side, and undecided if the bar is inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from bakeoff.report.statistics import Estimate, paired_difference, paired_ratio
from bakeoff.report.study import ACCURACY, Study
from bakeoff.report.tables import by_seed


@dataclass
class Claim:
    """A sentence that a study can test; its page lists it in CLAIMS.

    step     of the road in docs/methods.md, such as `3 baseline`; claims are ordered by its number
    text     what is claimed
    effect   what is measured, by name
    of       computes the effect and its 95 % interval from the study
    above    the bar of a claim that the effect is above it
    below    the bar of a claim that the effect is below it
    """

    step: str
    text: str
    effect: str
    of: Callable[[Study], Estimate]
    above: float | None = None
    below: float | None = None

    @property
    def bar(self) -> float:
        """The value that the effect is compared with."""
        (bar,) = (each for each in (self.above, self.below) if each is not None)
        return bar

    @property
    def rule(self) -> str:
        """When it is supported, in words."""
        return f"interval {'below' if self.above is None else 'above'} {self.bar:g}"

    def verdict(self, effect: Estimate) -> str:
        """`supported`, `not supported` or `undecided`."""
        if math.isnan(effect.low) or effect.low <= self.bar <= effect.high:
            return "undecided"
        return "supported" if (effect.low > self.bar) == (self.above is not None) else "not supported"


def difference(a: str, b: str, metric: str = ACCURACY) -> Callable[[Study], Estimate]:
    """The paired difference of a final metric between two arms."""
    return lambda study: paired_difference(by_seed(study, metric, a), by_seed(study, metric, b))


def ratio(a: str, b: str, metric: str) -> Callable[[Study], Estimate]:
    """The paired ratio of a final metric between two arms."""
    return lambda study: paired_ratio(by_seed(study, metric, a), by_seed(study, metric, b))
