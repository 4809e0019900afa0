"""Which arms differ: paired comparisons that are decided together, and the difference that their seeds can detect.

Where a study names an arm beforehand (`study.baseline`), the others are compared with it; else every pair is, so that
comparisons with the arm that turned out best are among them. Either family is corrected by Holm's method, so that at
most 5 % of families with equal arms call any arm higher or lower. Paired t-tests assume no common variance, as
Dunnett's and Hsu's procedures do: a method that fails in one seed of three would spoil it for all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import pandas as pd

from bakeoff.measure import STILL
from bakeoff.report.statistics import (
    CONFIDENCE,
    Estimate,
    counted,
    detectable,
    equivalent,
    holm,
    mean_interval,
    paired_p,
    pooled_deviation,
)
from bakeoff.report.study import ACCURACY, Study
from bakeoff.report.tables import by_seed, unmoved

HIGHER, EQUIVALENT, UNDECIDED, UNMOVED = "higher", "equivalent", "no significant difference", "did not move"


class Comparison(NamedTuple):
    """Two arms.

    change    a − b: mean and 95 % interval, paired by seed, not corrected
    p         of the paired t-test, corrected for the family
    within    whether two one-sided tests place the difference inside the margin; not corrected
    still     those of the two whose policy has not moved
    """

    a: str
    b: str
    change: Estimate
    p: float
    within: bool
    still: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """`higher`, `equivalent`, `no significant difference` or `did not move`; nothing else chooses between them.

        Arms are not equivalent because one did not move, nor undecided where neither did.
        """
        if self.higher:
            return HIGHER
        if self.still and (self.within or len(self.still) == 2):
            return UNMOVED
        return EQUIVALENT if self.within else UNDECIDED

    @property
    def unmoved(self) -> str:
        """`neither moved` or `a did not move`."""
        return "neither moved" if len(self.still) == 2 else f"{''.join(self.still)} {UNMOVED}"

    @property
    def higher(self) -> str:
        """The arm that is significantly higher, empty where none is."""
        if not self.p < 1 - CONFIDENCE:
            return ""
        return self.a if self.change.value > 0 else self.b


@dataclass(frozen=True)
class Family:
    """Comparisons that are decided together.

    differences   a − b by seed, of each pair of arms
    margin        a difference that is too small to matter
    step          of the values, 1 ÷ number of prompts for an accuracy: differences have no finer resolution
    still         the arms whose policies have not moved
    """

    differences: dict[tuple[str, str], pd.Series]
    margin: float
    step: float = 0.0
    still: frozenset[str] = frozenset()

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """The comparison of every pair."""
        corrected = holm([paired_p(own, self.step) for own in self.differences.values()])
        return [
            Comparison(
                *(a, b, mean_interval(own, self.step), p, equivalent(own, self.margin, self.step)),
                still=tuple(each for each in (a, b) if each in self.still),
            )
            for ((a, b), own), p in zip(self.differences.items(), corrected, strict=True)
        ]

    @property
    def seeds(self) -> int:
        """Number of seeds of a pair; the smallest where pairs differ in it."""
        return min(map(len, self.differences.values()), default=0)

    @property
    def deviation(self) -> float:
        """The standard deviation of paired differences over seeds, pooled over the pairs."""
        return pooled_deviation(self.differences.values())

    @cached_property
    def detectable(self) -> float:
        """The difference that four of five such studies find, corrected for the number of pairs."""
        return detectable(self.deviation, self.seeds, max(len(self.differences), 1), self.step)

    def below(self, arm: str) -> list[str]:
        """The arms that are significantly lower than this one, in the order of their pairs."""
        return [name for each in self.comparisons if each.higher == arm for name in each[:2] if name != arm]

    def result(self, each: Comparison) -> str:
        """`a is higher`, `equivalent (within ±0.02)`, `no significant difference (detectable: ±0.03)`, …"""
        if math.isnan(each.change.value):
            return "not compared: no seed in common"
        return {
            HIGHER: f"{each.higher} is higher" + (f", by less than {self.margin:g}" if each.within else ""),
            EQUIVALENT: f"{EQUIVALENT} (within ±{self.margin:g})",
            UNDECIDED: self.undecided,
            UNMOVED: f"{each.unmoved} (KL to the start below {STILL:g} nats per completion)",
        }[each.kind]

    @property
    def undecided(self) -> str:
        """The result of arms that are neither different nor equivalent."""
        if math.isinf(self.detectable):
            return f"{UNDECIDED} ({counted(self.seeds, 'seed')})"
        return f"{UNDECIDED} (detectable: ±{self.detectable:.2g})"

    @property
    def note(self) -> str:
        """Number of comparisons for which the results are corrected, and the difference that the seeds can detect."""
        pairs, seeds = len(self.differences), counted(self.seeds, "seed")
        text = f"Tests are paired by seed, over {seeds}"
        if pairs > 1:
            text += f", and corrected for {pairs} comparisons (Holm); intervals are not"
        if math.isinf(self.detectable):
            return f"{text}. So few seeds detect no difference."
        return (
            f"{text}. With {seeds}, four of five such studies find a difference of {self.detectable:.2g} (pooled "
            f"deviation of paired differences {self.deviation:.2g})."
        )


def pooled(families: Sequence[Family]) -> tuple[float, int]:
    """The deviation of paired differences pooled over families, and the largest number of pairs in one."""
    deviation = pooled_deviation(own for each in families for own in each.differences.values())
    return deviation, max((len(each.differences) for each in families), default=0)


def family(study: Study, metric: str = ACCURACY) -> Family:
    """The comparisons of a study's arms in a final metric: with its baseline where that finished, else of all pairs."""
    baseline = study.baseline
    others = [name for name in study.arms if name != baseline]
    chosen = [(name, baseline) for name in others] if baseline else list(itertools.combinations(study.arms, 2))
    values = {name: by_seed(study, metric, name) for name in study.arms}
    differences = {(a, b): (values[a] - values[b]).dropna() for a, b in chosen}
    return Family(differences, study.margin, study.step(metric), unmoved(study))
