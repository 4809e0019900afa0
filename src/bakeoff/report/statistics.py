"""Statistics of few runs. The run is the unit: seeds are the sample."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
FEWEST = 5  # seeds, below which a percentile bootstrap covers far less than 95 %: of three values 75 %
RESAMPLES = 2000
TIE = "no significant difference"


def counted(number: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number} {noun if number == 1 else f'{noun}s'}"


class Estimate(NamedTuple):
    """A value and its 95 % confidence interval, which is NaN where one run has none; of nothing all is NaN."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def decimals(self) -> int:
        """The decimals that the interval supports, at most four: the Particle Data Group's rule for its half width.

        Two significant digits of a half width that begins with 100 to 354, else one; without interval three decimals.
        """
        half = (self.high - self.low) / 2
        if not 1e-9 < half < math.inf:
            return 3
        place = math.floor(math.log10(half))
        return min(4, max(0, int(half < 3.55 * 10**place) - place))

    def text(self, sign: str = "") -> str:
        """`0.953 [0.929, 0.977]`, or the value alone without an interval; `sign="+"` shows every sign."""
        form = f"{sign}.{self.decimals}f"
        if not math.isfinite(self.value):
            return "–" if math.isnan(self.value) else f"{self.value:{sign}}".replace("inf", "∞")
        if math.isnan(self.low):
            return format(self.value, form)
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


def mean_interval(values: pd.Series) -> Estimate:
    """Mean over seeds with Student's t interval; no interval for fewer than two values, NaN for none."""
    x = values.to_numpy(dtype=float)
    if len(x) < 2:
        return Estimate(*map(float, x))
    mean, half = float(x.mean()), float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(x) - 1) * stats.sem(x))
    return Estimate(mean, mean - half, mean + half)


def share_interval(values: pd.Series) -> Estimate:
    """`mean_interval` of shares, which ends at 0 and 1."""
    mean = mean_interval(values)
    return Estimate(mean.value, max(mean.low, 0.0), min(mean.high, 1.0))


def paired_difference(a: pd.Series, b: pd.Series) -> Estimate:
    """Mean and interval of a − b over the seeds (index) that both have: runs of a seed share start and prompts."""
    return mean_interval((a - b).dropna())


def paired_ratio(a: pd.Series, b: pd.Series) -> Estimate:
    """Geometric mean and interval of a ÷ b over the seeds (index) that both have."""
    logs = paired_difference(pd.Series(np.log(a)), pd.Series(np.log(b)))
    return Estimate(*np.exp(logs).tolist())


def significance(difference: Estimate, a: str, b: str) -> str:
    """`a is higher` or `b is higher` if the interval of a − b excludes zero; TIE if not, or without an interval."""
    if difference.low > 0 or difference.high < 0:
        return f"{a if difference.value > 0 else b} is higher"
    return TIE


def interquartile_mean(scores: pd.Series) -> Estimate:
    """Mean of the middle half of the runs, with a percentile bootstrap interval: Agarwal et al. 2021
    (arXiv:2108.13264) §4.1 and §4.3.

    A quarter of the runs, rounded down, is left out at either end. The interval of a handful of runs is too narrow.
    """
    x, statistic = scores.to_numpy(), partial(stats.trim_mean, proportiontocut=0.25)
    if len(x) < 2:
        return Estimate(float(statistic(x)))
    drawn = stats.bootstrap((x,), statistic, confidence_level=CONFIDENCE, method="percentile", n_resamples=2000, rng=0)
    return Estimate(float(statistic(x)), *map(float, drawn.confidence_interval))


def probability_of_improvement(a: pd.Series, b: pd.Series) -> float:
    """The probability that a run of A is better than one of B, ties counted half: Agarwal et al. 2021 §4.4.

    It is Mann and Whitney's U over the number of pairs.
    """
    return float(stats.mannwhitneyu(a, b, method="asymptotic").statistic / (len(a) * len(b)))


def stratified_iqm(scores: pd.DataFrame) -> Estimate:
    """Interquartile mean of the runs of all regimes (columns regime, seed, score) with stratified bootstrap interval.

    Seeds are drawn with replacement within each regime: Agarwal et al. 2021 (arXiv:2108.13264) §4.3. The interval is
    NaN where a regime has fewer than FEWEST seeds.
    """
    runs = by_regime(scores)
    if not runs:
        return Estimate()
    rng = np.random.default_rng(0)
    every = np.concatenate([resampled(own, rng) for own in runs.values()], axis=1)
    return bootstrapped(stats.trim_mean(every, 0.25, axis=1), [*runs.values()])


def stratified_improvement(a: pd.DataFrame, b: pd.DataFrame) -> Estimate:
    """The probability that a run of A scores above one of B in the same regime, ties counted half, as a mean over the
    regimes that both have (columns regime, seed, score), with stratified bootstrap interval: Agarwal et al. 2021 §4.4.

    The interval is NaN where a regime has fewer than FEWEST seeds, and all is NaN without a common regime.
    """
    of_a, of_b = by_regime(a), by_regime(b)
    common = [(of_a[regime], of_b[regime]) for regime in of_a if regime in of_b]
    if not common:
        return Estimate()
    rng = np.random.default_rng(0)
    drawn = [(resampled(x, rng)[:, :, None], resampled(y, rng)[:, None, :]) for x, y in common]
    wins = np.mean([((x > y) + 0.5 * (x == y)).mean((1, 2)) for x, y in drawn], axis=0)
    return bootstrapped(wins, [runs for pair in common for runs in pair])


def by_regime(scores: pd.DataFrame) -> dict[str, np.ndarray]:
    """The scores of each regime's runs."""
    groups = scores.groupby("regime", observed=True)["score"]
    return {str(regime): own.to_numpy(dtype=float) for regime, own in groups}


def resampled(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[1 + RESAMPLES, n]: the values themselves, then as many draws of them with replacement."""
    return np.vstack([values, rng.choice(values, (RESAMPLES, len(values)))])


def bootstrapped(statistic: np.ndarray, strata: list[np.ndarray]) -> Estimate:
    """The first value of a statistic of `resampled` rows, with the percentile interval of the others.

    It has no interval where a stratum has fewer than FEWEST values.
    """
    value, drawn = float(statistic[0]), statistic[1:]
    if min(map(len, strata)) < FEWEST:
        return Estimate(value)
    return Estimate(value, *map(float, np.quantile(drawn, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])))


def performance_profile(scores: pd.Series, thresholds: np.ndarray) -> np.ndarray:
    """The share of runs whose score is above each threshold: Agarwal et al. 2021 §4.2."""
    return np.asarray(stats.ecdf(scores).sf.evaluate(thresholds))


def area_under_curve(x: np.ndarray, y: np.ndarray) -> float:
    """The curve's mean height between its first and last x, by trapezoids."""
    return float(np.trapezoid(y, x) / (x[-1] - x[0])) if len(x) > 1 else float(y[0])


def first_at(x: np.ndarray, y: np.ndarray, threshold: float) -> float:
    """The x at which the curve first reaches a threshold, by linear interpolation; NaN if it never does."""
    reached = np.flatnonzero(y >= threshold)
    if not len(reached):
        return math.nan
    around = slice(max(0, reached[0] - 1), reached[0] + 1)
    return float(np.interp(threshold, y[around], x[around]))
